"""Read a reference from plain data, field by field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from headloc.errors import HeadlocError, suggest
from headloc.heads import HeadId
from headloc.references.reference import Quantity, ReadAs, Reference

_FIELDS = {
    "experiment": str, "paper": str, "arxiv": str, "model": str, "published": bool,
    "quantities": list, "main_heads": list, "heads_section": str, "note": str,
}  # fmt: skip
_REQUIRED = ("experiment", "paper", "arxiv", "model", "published", "quantities")
_QUANTITY = ("name", "metric", "value", "meaning", "section", "read")


def parse_reference(data: Any, where: str) -> Reference:
    """Return the reference that parsed JSON describes.

    Args:
        data: the content of a reference file.
        where: name of the file, for messages.

    Raises:
        HeadlocError: naming the first field that is missing, unknown or of the wrong type.
    """
    if not isinstance(data, dict):
        raise HeadlocError(f"{where} is not a JSON object, so it is no reference.")
    _check_fields(data, where)
    quantities = tuple(
        _quantity(item, f"{where}, quantity {index}", published=data["published"])
        for index, item in enumerate(data["quantities"])
    )
    names = [quantity.name for quantity in quantities]
    for name in names:
        if names.count(name) > 1:
            raise HeadlocError(f"{where} holds the quantity {name!r} twice. Keep one of them.")
    heads = tuple(_head(pair, where) for pair in data.get("main_heads", []))
    if heads and not data["published"]:
        raise HeadlocError(f"{where} names published heads although nothing was published.")
    return Reference(**{**data, "quantities": quantities, "main_heads": heads})


def _check_fields(data: Mapping[str, Any], where: str) -> None:
    for name in data:
        if name not in _FIELDS:
            raise HeadlocError(f"{where} has an unknown field {name!r}. {suggest(name, _FIELDS)}")
    for name in _REQUIRED:
        if name not in data:
            raise HeadlocError(f"{where} lacks the field {name!r}.")
    for name, value in data.items():
        if not isinstance(value, _FIELDS[name]):
            kind = _FIELDS[name].__name__
            raise HeadlocError(f"{where}: {name}={value!r} is not a {kind}.")


def _quantity(item: Any, where: str, *, published: bool) -> Quantity:
    if not isinstance(item, dict) or sorted(item) != sorted(_QUANTITY):
        raise HeadlocError(f"{where} should have exactly the fields {', '.join(_QUANTITY)}.")
    if item["metric"] is not None and not isinstance(item["metric"], str):
        raise HeadlocError(f"{where}: metric={item['metric']!r} is not the key of a metric.")
    for name in ("name", "meaning", "section"):
        if not isinstance(item[name], str) or not item[name]:
            raise HeadlocError(f"{where}: {name}={item[name]!r} should be a text.")
    low, high = _range(item["value"], where)
    if low is not None and not published:
        raise HeadlocError(f"{where} has a value, but nothing was published.")
    texts = {name: item[name] for name in ("name", "metric", "meaning", "section")}
    return Quantity(
        **texts, low=low, high=high, read=_read(item["read"], where, given=low is not None)
    )


def _range(value: Any, where: str) -> tuple[float | None, float | None]:
    if value is None:
        return None, None
    ends = value if isinstance(value, list) else [value, value]
    if len(ends) != 2 or not all(_is_number(end) for end in ends) or ends[0] > ends[1]:
        raise HeadlocError(f"{where}: value={value!r} is neither a number nor [low, high].")
    return float(ends[0]), float(ends[1])


def _read(value: Any, where: str, *, given: bool) -> ReadAs | None:
    if value not in (("seen", "digest") if given else (None,)):
        expected = "'seen' or 'digest'" if given else "null, as the value is"
        raise HeadlocError(f"{where}: read={value!r} should be {expected}.")
    return value


def _head(pair: Any, where: str) -> HeadId:
    whole = isinstance(pair, list) and len(pair) == 2 and all(
        isinstance(part, int) and not isinstance(part, bool) and part >= 0 for part in pair
    )  # fmt: skip
    if not whole:
        raise HeadlocError(f"{where}: {pair!r} in main_heads is not a [layer, head] pair.")
    return HeadId(*pair)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
