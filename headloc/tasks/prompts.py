"""Prompts: a fixed set of whole prompts with their answers, such as other tools exchange.

A file is a JSON list, one entry a prompt:

    [{"prompt": "1 + 2 =", "answer": " 3", "counterfactual": "1 + 7 =", "other_answer": " 8"}, ...]

The texts are used as they are, blanks included.  `counterfactual` and `other_answer`, the corrupted
prompt and what answers it, may be missing; off_value=resample needs the first.  `headloc task
import` makes such files of the prompt files of other tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from headloc.errors import TaskError
from headloc.tasks.example import Example
from headloc.tasks.files import fingerprint, is_unicode, read_json, require_path
from headloc.tasks.whole_prompts import WholePrompts

KEYS = ("prompt", "answer", "counterfactual", "other_answer")
_SHAPE = '[{"prompt": "1 + 2 =", "answer": " 3", "counterfactual": "1 + 7 ="}, ...]'


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt with its answer.

    Attributes:
        prompt: the whole text.
        answer: the text that follows it.
        counterfactual: the corrupted prompt.
        other_answer: what follows that.
    """

    prompt: str
    answer: str
    counterfactual: str | None = None
    other_answer: str | None = None

    def to_dict(self) -> dict[str, str]:
        """The entry of a file."""
        pairs = ((key, getattr(self, key)) for key in KEYS)
        return {key: value for key, value in pairs if value is not None}


class Prompts(WholePrompts):
    """One task, given by its prompts.

    Half of the prompts is for finding heads, the other half for scoring them.  A draw holds every
    prompt once at most, so it may be smaller than what was asked for.

    Args:
        path: a JSON file.

    Raises:
        TaskError: when the file is not a list of prompts, or has fewer than four.
    """

    name: ClassVar[str] = "prompts"

    def __init__(self, path: str | Path) -> None:
        require_path(path, "FILE, a JSON list of prompts")
        file = Path(path).expanduser()
        self._path = path
        self._prompts = parse_prompts(read_json(file), str(file))
        if len(self._prompts) < 4:
            raise TaskError(f"{file} has {len(self._prompts)} prompts. Give four or more.")
        answers = {text: prompt.answer for text, prompt in self._prompts.items()}
        super().__init__({file.stem: answers})

    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"path": str(self._path)}

    def provenance(self) -> dict[str, Any]:
        """Number of prompts, and a fingerprint of them all."""
        data = [prompt.to_dict() for prompt in self._prompts.values()]
        return {"items": len(data), "data": fingerprint(data)}

    def counterfactual(self, example: Example, rng: np.random.Generator) -> Example:
        """The corrupted prompt of the file.

        Raises:
            TaskError: when it has none for this prompt.
        """
        prompt = self._prompts[example.query]
        if prompt.counterfactual is None:
            raise TaskError(
                f"The prompt {example.query[-60:]!r} has no counterfactual in its file. Add one, "
                "or use off-values zero or mean."
            )
        answer = prompt.other_answer or prompt.answer
        return Example(example.task, (), prompt.counterfactual, answer)


def parse_prompts(content: Any, where: str) -> dict[str, Prompt]:
    """The prompts of a file's content by their text, repetitions dropped.

    Raises:
        TaskError: naming the file, the entry and what is wrong with it.
    """
    if not isinstance(content, list) or not content:
        raise TaskError(f"{where} is not a list of prompts. Expected: {_SHAPE}.")
    prompts: dict[str, Prompt] = {}
    for index, entry in enumerate(content):
        prompt = _prompt(entry, f"{where}, entry {index}")
        if prompts.setdefault(prompt.prompt, prompt) != prompt:
            raise TaskError(
                f"{where}, entry {index}: the prompt {prompt.prompt[-60:]!r} stands in the file "
                "before, with another answer or counterfactual. Keep one of the two."
            )
    return prompts


def _prompt(entry: Any, where: str) -> Prompt:
    if not isinstance(entry, Mapping):
        raise TaskError(f"{where} is not an object. Expected: {_SHAPE}.")
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        raise TaskError(f"{where} has the key {str(unknown[0])[:40]!r}; known: {', '.join(KEYS)}.")
    values = {key: entry.get(key) for key in KEYS}
    for key, value in values.items():
        if value is None and key not in ("prompt", "answer"):
            continue
        if not isinstance(value, str) or not value.strip() or not is_unicode(value):
            raise TaskError(f"{where}: {key!r} must be text with something visible in it.")
    return Prompt(**values)  # type: ignore[arg-type]
