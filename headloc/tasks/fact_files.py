"""Lists of facts from JSON: whole prompts with the word that completes them.

Two shapes are read.  A list, one entry a fact,

    [{"prompt": "The capital of France is", "subject": "France", "target": " Paris",
      "relation": "capital"}, ...]

with `attribute` in place of `target`, and `relation_id` in place of `relation`, taken as well, and
further keys left alone.  Or one relation with templates, the first of which is used:

    {"name": "capital", "prompt_templates": ["The capital of {} is"],
     "samples": [{"subject": "France", "object": "Paris"}, ...]}

A target that begins without a blank gets one where the prompt does not end with one, since that is
how the text goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headloc.errors import TaskError
from headloc.tasks.files import is_unicode, read_bundled, read_json

_SHAPE = '[{"prompt": "The capital of France is", "subject": "France", "target": " Paris"}, ...]'


@dataclass(frozen=True, slots=True)
class KnownFact:
    """A prompt and what completes it.

    Attributes:
        relation: what relates subject and target, such as `capital`.
        prompt: the whole text before the target.
        subject: what the prompt is about; part of it, or empty when unknown.
        target: the text that follows, its blank in front included.
    """

    relation: str
    prompt: str
    subject: str
    target: str


def read_facts(path: Path) -> list[KnownFact]:
    """Read a file of facts.

    Raises:
        TaskError: naming the file, the entry and what is wrong with it.
    """
    return list(_facts(read_json(path), str(path), path.stem))


def bundled_facts() -> list[KnownFact]:
    """The facts that the bundled model was trained on.

    Raises:
        TaskError: when this installation lacks them.
    """
    return list(_facts(read_bundled("facts.json"), "facts.json", "facts"))


def _facts(content: Any, where: str, stem: str) -> Iterator[KnownFact]:
    if isinstance(content, Mapping):
        content = _filled(content, where)
    if not isinstance(content, list) or not content:
        raise TaskError(f"{where} is not a list of facts. Expected: {_SHAPE}.")
    for index, entry in enumerate(content):
        place = f"{where}, entry {index}"
        if not isinstance(entry, Mapping):
            raise TaskError(f"{place} is not an object. Expected: {_SHAPE}.")
        prompt = _text(entry, ("prompt",), place)
        target = _text(entry, ("target", "attribute"), place)
        subject = entry.get("subject", "")
        relation = entry.get("relation", entry.get("relation_id", stem))
        if not isinstance(subject, str) or not isinstance(relation, str):
            raise TaskError(f"{place}: 'subject' and 'relation' must be text.")
        apart = target[0].isspace() or prompt[-1].isspace()
        yield KnownFact(relation or stem, prompt, subject, target if apart else f" {target}")


def _filled(relation: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """Fill the first template of a relation with its samples."""
    templates, samples = relation.get("prompt_templates"), relation.get("samples")
    first = templates[0] if isinstance(templates, list) and templates else None
    if not isinstance(first, str) or first.count("{}") != 1 or not isinstance(samples, list):
        raise TaskError(
            f'{where} is no list of facts and no relation with "prompt_templates" (each with one '
            f'{{}}) and "samples". Expected: {_SHAPE}.'
        )
    found = []
    for index, sample in enumerate(samples):
        place = f"{where}, sample {index}"
        if not isinstance(sample, Mapping):
            raise TaskError(f'{place} is not an object with "subject" and "object".')
        subject = _text(sample, ("subject",), place)
        found.append(
            {
                "relation": str(relation.get("name") or Path(where).stem),
                "prompt": first.replace("{}", subject),
                "subject": subject,
                "target": _text(sample, ("object",), place),
            }
        )
    return found


def _text(entry: Mapping[str, Any], keys: tuple[str, ...], where: str) -> str:
    value = next((entry[key] for key in keys if key in entry), None)
    if not isinstance(value, str) or not value.strip() or not is_unicode(value):
        names = " or ".join(map(repr, keys))
        raise TaskError(f"{where}: {names} must be text with something visible in it.")
    return value
