"""Reading task files, with an error that names the file and what to do about it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

from headloc.errors import TaskError
from headloc.randomness import stable_hash

MAX_BYTES = 64 * 2**20
"""Largest file that is read: a task needs thousands of items, not millions."""

BUNDLED = "bundled"


def require_path(path: object, example: str) -> None:
    """Refuse an empty text, which would otherwise name the current folder.

    Raises:
        TaskError: telling what to give.
    """
    if isinstance(path, str) and not path.strip():
        raise TaskError(f"task.path is missing. Give it as task.path={example}.")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8 (a byte order mark is dropped).

    Raises:
        TaskError: when the file cannot be read, is huge, or is not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise TaskError(
                f"{path} has {size / 2**20:.0f} MB; task files of up to {MAX_BYTES // 2**20} MB "
                "are read. Give a sample of its items."
            )
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path} is not UTF-8 text (byte {error.start} cannot be decoded). Save it as UTF-8."
        ) from None
    except OSError as error:
        raise TaskError(f"Cannot read {path}: {error.strerror}. Check the path.") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        TaskError: when the file cannot be read or is not JSON.
    """
    return _parse_json(read_text(path), path)


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TaskError(
            f"{path} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}. "
            "Correct it there."
        ) from None
    except RecursionError:
        raise TaskError(f"{path} is nested too deeply. Give a flat list of items.") from None
    except ValueError:
        raise TaskError(f"{path} holds a number of thousands of digits. Correct it.") from None


def read_csv(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str | None]]]:
    """The rows of a CSV file with a header line, each with the number of the line it ends on.

    Raises:
        TaskError: when the file cannot be read or lacks one of `columns`.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = list(reader.fieldnames or ())
        missing = [column for column in columns if column not in header]
        if missing:
            raise TaskError(
                f"{path} has no column {', '.join(missing)}; its first line names: "
                f"{', '.join(header) or 'nothing'}. Begin the file with the line "
                f"`{','.join(columns)}`."
            )
        return [(reader.line_num, {column: row[column] for column in columns}) for row in reader]
    except csv.Error as error:
        raise TaskError(
            f"{path} is not valid CSV: line {reader.reader.line_num}: {error}. Correct it there."
        ) from None


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, as a JSON escape may leave it.

    Tokenizers cannot take such a text.
    """
    return not any("\ud800" <= char <= "\udfff" for char in text)


def read_bundled(name: str) -> Any:
    """The content of a JSON file that ships with headloc.

    Raises:
        TaskError: when this installation lacks the file.
    """
    resource = resources.files("headloc.bundled") / name
    if not resource.is_file():
        raise TaskError(f"{name} is missing from this installation. Reinstall headloc.")
    return json.loads(resource.read_text(encoding="utf-8"))


def fingerprint(content: Any) -> str:
    """A hash of plain data, to tell whether it has changed."""
    text = json.dumps(content, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def halves(keys: list[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Split keys into two pools that differ in size by at most one.

    The order of a stable hash decides, so that a key shared by several files lands in the same pool
    of most of them, whatever the order of the files' items.
    """
    ranked = sorted(keys, key=lambda key: stable_hash("pool", key))
    middle = (len(ranked) + 1) // 2
    return frozenset(ranked[:middle]), frozenset(ranked[middle:])
