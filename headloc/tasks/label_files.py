"""Classification data: texts and their classes, from JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headloc.errors import TaskError
from headloc.tasks.files import BUNDLED, is_unicode, read_bundled, read_csv, read_json, require_path

_SHAPE = '[{"text": "...", "class": "..."}, ...]'
_COLUMNS = ("text", "class")

Classes = dict[str, tuple[str, ...]]
"""Texts of each class, both in the order of the file."""


def read_classes(path: str | Path | None) -> Classes:
    """The classes of a file, or of the words that ship with headloc (None or `bundled`).

    A `.csv` file has the columns text and class; any other is JSON: a list of
    `{"text", "class"}`, or an object from class to list of texts.

    Raises:
        TaskError: naming the file, the item and what to do, when something is not as it should be.
    """
    if path is None or path == BUNDLED:
        return _collect(_object_rows(read_bundled("words.json"), "the bundled words"))
    if not isinstance(path, (str, Path)):
        raise TaskError(f"task.path={path!r} is not the name of a file. Give one JSON or CSV file.")
    require_path(path, "FILE, a CSV or JSON file")
    file = Path(path).expanduser()
    if file.suffix.lower() == ".csv":
        rows = [(f"{file}, line {line}", row) for line, row in read_csv(file, _COLUMNS)]
    else:
        rows = list(_json_rows(read_json(file), str(file)))
    if not rows:
        raise TaskError(f"{file} holds no items. Expected: {_SHAPE}.")
    return _collect(rows)


def _json_rows(content: Any, where: str) -> Iterable[tuple[str, Any]]:
    if isinstance(content, dict):
        return _object_rows(content, where)
    if not isinstance(content, list):
        raise TaskError(f"{where} holds neither a list nor an object. Expected: {_SHAPE}.")
    return [(f"{where}, item {index}", item) for index, item in enumerate(content)]


def _object_rows(content: dict[str, Any], where: str) -> Iterable[tuple[str, Any]]:
    for name, members in content.items():
        if not isinstance(members, list):
            raise TaskError(f"{where}: class {name!r} holds no list of texts. Expected: {_SHAPE}.")
        for index, member in enumerate(members):
            yield f"{where}, class {name!r}, item {index}", {"text": member, "class": name}


def _collect(rows: Iterable[tuple[str, Any]]) -> Classes:
    """Group texts by class; a text that comes again in its class is taken once."""
    class_of: dict[str, str] = {}
    for where, row in rows:
        text, name = (_text(row, key, where) for key in _COLUMNS)
        if class_of.setdefault(text, name) != name:
            raise TaskError(
                f"{where}: {text!r} has the class {name!r}, but {class_of[text]!r} before. "
                "Keep one of the two."
            )
    classes: dict[str, list[str]] = {}
    for text, name in class_of.items():
        classes.setdefault(name, []).append(text)
    return {name: tuple(members) for name, members in classes.items()}


def _text(row: Any, key: str, where: str) -> str:
    if not isinstance(row, dict):
        raise TaskError(f"{where} is {row!r}, not an object. Expected: {_SHAPE}.")
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise TaskError(f"{where}: {key!r} is {value!r}, but must be text. Expected: {_SHAPE}.")
    if not is_unicode(value):
        raise TaskError(f"{where}: {key!r} holds half of a surrogate pair. Correct its \\u escape.")
    return value.strip()
