"""Prompt files of other tools, as the prompts of headloc's own task=prompts.

    auto_circuit   {"prompts": [{"clean", "corrupt", "answers", "wrong_answers"}]}
    eap_ig         CSV with clean, corrupted, correct_idx, incorrect_idx (token ids); also MIB's
    edge_pruning   JSON lines with "clean" and "corrupted", answers between <predict> and </predict>

The pairs of function_vectors, [{"input", "output"}], need no import: task=pairs reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from headloc.errors import HeadlocError, TaskError, suggest
from headloc.tasks.files import read_csv, read_json, read_text
from headloc.tasks.prompts import Prompt, parse_prompts

Decode = Callable[[int], str]
"""Token id -> its text."""

_ANSWER = re.compile(r"(.*?)<predict>(.*?)</predict>\s*", re.DOTALL)
_NEEDS_TOKENIZER = "eap_ig"


def read_prompts(path: Path, kind: str, decode: Decode | None = None) -> list[Prompt]:
    """Read a prompt file.

    Args:
        path: the file.
        kind: its format, one of `PROMPT_FORMATS`.
        decode: the text of a token id, for formats that give answers as such.

    Raises:
        HeadlocError: for an unknown format.
        TaskError: for a file that is not of this format, naming the entry.
    """
    if kind not in PROMPT_FORMATS:
        raise HeadlocError(f"format={kind!r} is unknown. {suggest(kind, PROMPT_FORMATS)}")
    if kind == _NEEDS_TOKENIZER and decode is None:
        raise TaskError(
            f"format={kind} gives answers as token ids. Name the model whose tokenizer they are "
            "of: model=bundled|DIR|HUB_ID."
        )
    entries = [prompt.to_dict() for prompt in PROMPT_FORMATS[kind](path, decode)]
    return list(parse_prompts(entries, str(path)).values())


def _auto_circuit(path: Path, decode: Decode | None) -> Iterator[Prompt]:
    data = read_json(path)
    entries = data.get("prompts") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        raise TaskError(f'{path} has no list "prompts" of {{"clean", "corrupt", "answers", ...}}.')
    for where, entry in _numbered(path, entries):
        wrong = entry.get("wrong_answers") or [None]
        yield Prompt(
            _text(entry.get("clean"), f"{where}: 'clean'"),
            _one(entry.get("answers"), f"{where}: 'answers'"),
            _text(entry.get("corrupt"), f"{where}: 'corrupt'"),
            None if wrong == [None] else _first(wrong, f"{where}: 'wrong_answers'"),
        )


def _eap_ig(path: Path, decode: Decode | None) -> Iterator[Prompt]:
    for line, row in read_csv(path, ("clean", "corrupted", "correct_idx", "incorrect_idx")):
        where = f"{path}, line {line}"
        right, wrong = (
            _decoded(row[key], f"{where}: {key}", decode)
            for key in ("correct_idx", "incorrect_idx")
        )
        clean, corrupted = (_text(row[key], f"{where}: {key}") for key in ("clean", "corrupted"))
        yield Prompt(clean, right, corrupted, wrong)


def _edge_pruning(path: Path, decode: Decode | None) -> Iterator[Prompt]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise TaskError(f"{where} is not valid JSON.") from None
        if not isinstance(entry, dict):
            raise TaskError(f'{where} is not an object with "clean" and "corrupted".')
        parts = []
        for key in ("clean", "corrupted"):
            match = _ANSWER.fullmatch(_text(entry.get(key), f"{where}: {key!r}"))
            if match is None:
                raise TaskError(
                    f"{where}: {key!r} must end with its answer in <predict>...</predict>, once."
                )
            parts += [match[1], match[2]]
        yield Prompt(*parts)


def _numbered(path: Path, entries: Iterable[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, entry in enumerate(entries):
        where = f"{path}, prompt {index}"
        if not isinstance(entry, dict):
            raise TaskError(f"{where} is not an object.")
        yield where, entry


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TaskError(f"{what} is not text.")
    return value


def _one(values: Any, what: str) -> str:
    if isinstance(values, list) and len(values) > 1:
        raise TaskError(
            f"{what} has {len(values)} right answers; headloc scores one answer a prompt. Keep one."
        )
    return _first(values, what)


def _first(values: Any, what: str) -> str:
    if not isinstance(values, list) or not values:
        raise TaskError(f"{what} is not a list with an answer.")
    return _text(values[0], what)


def _decoded(text: str | None, what: str, decode: Decode | None) -> str:
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 10):
        raise TaskError(f"{what} is {text!r:.40}, not one token id.")
    return "" if decode is None else decode(int(text))


PROMPT_FORMATS: dict[str, Callable[[Path, Decode | None], Iterator[Prompt]]] = {
    "auto_circuit": _auto_circuit,
    "eap_ig": _eap_ig,
    "edge_pruning": _edge_pruning,
}
