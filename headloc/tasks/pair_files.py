"""Pairs files: a JSON list of `{"input": ..., "output": ...}`, one file a task.

This is the format of the field's function-vector data (Todd et al. 2024, arXiv 2310.15213).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from headloc.errors import TaskError
from headloc.tasks.example import Demonstration
from headloc.tasks.files import BUNDLED, is_unicode, read_bundled, read_json, require_path

OnConflict = Literal["error", "drop"]
_SHAPE = '[{"input": "...", "output": "..."}, ...]'


def read_pair_files(
    path: str | Path | Sequence[str | Path], on_conflict: OnConflict
) -> dict[str, tuple[Demonstration, ...]]:
    """The items of every task: of a file, of several, of a folder's files, or the bundled facts.

    Raises:
        TaskError: naming the file, the item and what to do, when something is not as it should be.
    """
    if path == BUNDLED:
        return _bundled()
    require_path(path, "DIR, a folder with one JSON file a task")
    tasks: dict[str, tuple[Demonstration, ...]] = {}
    for file in _files(path):
        if file.stem in tasks:
            raise TaskError(
                f"Two files are named {file.stem!r}, and a task is named by its file: "
                "rename one of them."
            )
        tasks[file.stem] = parse_pairs(read_json(file), str(file), on_conflict)
    return tasks


def parse_pairs(
    content: Any, where: str, on_conflict: OnConflict = "error"
) -> tuple[Demonstration, ...]:
    """The items of one file's content, blanks around texts removed and repetitions dropped.

    Args:
        content: parsed JSON.
        where: the file's name, for messages.
        on_conflict: what to do with an input that has several outputs: refuse the file, or drop
            every item with that input.

    Raises:
        TaskError: when the content is not a list of pairs of texts.
    """
    if not isinstance(content, list):
        raise TaskError(f"{where} holds {_name(content)}, not a list. Expected: {_SHAPE}.")
    if not content:
        raise TaskError(f"{where} is an empty list. Expected: {_SHAPE}.")
    outputs: dict[str, str] = {}
    conflicts: set[str] = set()
    for index, item in enumerate(content):
        given, output = (_text(item, key, f"{where}, item {index}") for key in ("input", "output"))
        if outputs.setdefault(given, output) != output:
            if on_conflict == "error":
                raise TaskError(_conflict(f"{where}, item {index}", given, outputs[given], output))
            conflicts.add(given)
    return tuple(Demonstration(x, y) for x, y in outputs.items() if x not in conflicts)


def _conflict(where: str, given: str, first: str, second: str) -> str:
    return (
        f"{where}: input {given!r} has the output {second!r}, but {first!r} before. Keep one of "
        "the two, or leave out every such input with task.on_conflict=drop."
    )


def _text(item: Any, key: str, where: str) -> str:
    if not isinstance(item, dict):
        raise TaskError(f"{where} is {_name(item)}, not an object. Expected: {_SHAPE}.")
    if key not in item:
        keys = ", ".join(map(repr, item)) or "none"
        raise TaskError(f"{where} has no {key!r}; its keys: {keys}. Expected: {_SHAPE}.")
    value = item[key]
    if not isinstance(value, str):
        raise TaskError(f"{where}: {key!r} is {value!r}, not text. Put it in quotes.")
    if not value.strip():
        raise TaskError(f"{where}: {key!r} is empty. Give it a text, or remove the item.")
    if not is_unicode(value):
        raise TaskError(f"{where}: {key!r} holds half of a surrogate pair. Correct its \\u escape.")
    return value.strip()


def _name(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        type(None): "null",
        bool: "a truth value",
    }
    return names.get(type(value), "a number")


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(path, (str, Path)):
        folder = Path(path).expanduser()
        if not folder.is_dir():
            return [folder]
        files = sorted(folder.glob("*.json"))
        if not files:
            raise TaskError(f"The folder {folder} holds no .json file. Expected one file a task.")
        return files
    if not isinstance(path, Sequence) or not path:
        raise TaskError(
            f"task.path={path!r} names no file. Give a file, a folder or a list of files."
        )
    for item in path:
        if not isinstance(item, (str, Path)):
            raise TaskError(f"task.path contains {item!r}. Give names of files.")
    return [Path(item).expanduser() for item in path]


def _bundled() -> dict[str, tuple[Demonstration, ...]]:
    """Facts that ship with headloc: one task per relation, from subject to target."""
    relations: dict[str, list[dict[str, str]]] = {}
    for fact in read_bundled("facts.json"):
        pair = {"input": fact["subject"], "output": fact["target"]}
        relations.setdefault(fact["relation"], []).append(pair)
    return {name: parse_pairs(items, f"bundled {name}") for name, items in relations.items()}
