"""Read files that others wrote: every mistake is told with its place, nothing else gets through."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from headloc.errors import CircuitError
from headloc.heads import HeadId

LARGEST = 64 * 2**20
"""Most bytes that are read."""

LARGEST_INDEX = 10**5
"""No model has more layers, or more heads in a layer."""


def file_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        CircuitError: when it cannot be read or is larger than 64 MiB.
    """
    try:
        if path.is_dir():
            raise CircuitError(f"{path} is a folder. Give the file in it.")
        if path.stat().st_size > LARGEST:
            raise CircuitError(f"{path} is larger than 64 MiB: more than any head file holds.")
        return path.read_bytes()
    except OSError as error:
        raise CircuitError(f"Cannot read {path}: {error.strerror}. Check the path.") from None


def file_text(path: Path) -> str:
    """Return the text of a file in UTF-8; a byte order mark is dropped.

    Raises:
        CircuitError: as `file_bytes`, or when it is not UTF-8.
    """
    try:
        return file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CircuitError(f"{path} is not UTF-8 text.") from None


def json_of(text: str, where: str) -> Any:
    """Parse JSON strictly: no NaN, no key twice.

    Raises:
        CircuitError: when it is not JSON.
    """

    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"it holds {name}, which is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            double = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {double[:40]!r} stands in an object twice")
        return content

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=once)
    # ValueError: also numbers of more digits than Python converts.
    except (ValueError, RecursionError) as error:
        raise CircuitError(f"{where} is not valid JSON: {error}.") from None


class Checks:
    """Checks of single values, with messages that name the file and the expected form.

    Args:
        where: the file.
        form: what it should hold, in words.
    """

    def __init__(self, where: str, form: str) -> None:
        self._where, self._form = where, form

    def refuse(self, what: str) -> CircuitError:
        """Return the error that says what is wrong."""
        return CircuitError(f"{self._where}: {what}. Expected: {self._form}.")

    def index(self, value: Any, what: str) -> int:
        """Return a layer or head number."""
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if not is_int or not 0 <= value <= LARGEST_INDEX:
            raise self.refuse(f"{what} is {_short(value)}, not a number counted from 0")
        return int(value)

    def head(self, layer: Any, head: Any) -> HeadId:
        """Return a head."""
        return HeadId(self.index(layer, "a layer"), self.index(head, "a head"))

    def number(self, value: Any, what: str) -> float:
        """Return a finite number."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # Not float(value) first: it overflows on huge integers.
        if not is_number or not abs(value) < 1e38 or not math.isfinite(value):
            raise self.refuse(f"{what} is {_short(value)}, not a finite number")
        return float(value)

    def truth(self, value: Any, what: str) -> bool:
        """Return true or false."""
        if not isinstance(value, bool):
            raise self.refuse(f"{what} is {_short(value)}, not true or false")
        return value

    def add(self, into: dict[Any, Any], key: Any, value: Any) -> None:
        """Take down a value under a key that must be new."""
        if key in into:
            raise self.refuse(f"{key} stands in it twice")
        into[key] = value

    def each(self, value: Any, what: str, take: Callable[[Any], None]) -> None:
        """Hand on the items of a list."""
        if not isinstance(value, list):
            raise self.refuse(f"{what} is {_short(value)}, not a list")
        for item in value:
            take(item)


def _short(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", type(None): "null"}
    if type(value) in kinds:
        return kinds[type(value)]
    try:
        text = repr(value)
    except ValueError:  # an integer of too many digits to print
        return "a huge number"
    return text if len(text) <= 40 else f"{text[:37]}..."
