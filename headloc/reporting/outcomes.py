"""Rows about prompts: what was asked, and what the full model and the circuit answered.

Shapes: N prompts, J predicting columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headloc.evaluation.conditions import APART

if TYPE_CHECKING:
    from headloc.evaluation.verdict import SplitVerdict
    from headloc.lm.frozen import FrozenLM
    from headloc.localizer.run import Localization

SCORED = ("full", "circuit", "without_circuit", "off")
"""Conditions with one outcome per prompt; the random sets have many."""


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One scored prompt.

    Attributes:
        split: `seen` or `held_out`.
        index: its position among the prompts of the split.
        task: name of the task within its family.
        prompt: text of the prompt.
        answer: the right answer.
        predicted: answer by condition, decoded.
        correct: whether it was right, by condition.
        log_probability: log p(answer) in nats, by condition.
    """

    split: str
    index: int
    task: str
    prompt: str
    answer: str
    predicted: dict[str, str]
    correct: dict[str, bool]
    log_probability: dict[str, float]


def outcome_rows(result: Localization, lm: FrozenLM) -> list[OutcomeRow]:
    """Return every prompt of the verdict."""
    decode = _decoder(lm.tokenizer)
    return [
        row
        for split, verdict in result.verdicts.items()
        for row in _split_rows(split, verdict, decode)
    ]


def example_rows(rows: Sequence[OutcomeRow], first: int = 4, failures: int = 2) -> list[OutcomeRow]:
    """Return a few prompts of each split to read.

    Args:
        rows: all rows.
        first: this many from the front of a split, whatever came out.
        failures: and this many more of which the circuit got the answer wrong, or the full model.
    """
    picked: list[OutcomeRow] = []
    for split in dict.fromkeys(row.split for row in rows):
        own = [row for row in rows if row.split == split]
        wrong = [row for row in own[first:] if not (row.correct["circuit"] and row.correct["full"])]
        picked += own[:first] + wrong[:failures]
    return picked


def _split_rows(
    split: str, verdict: SplitVerdict, decode: Callable[[Sequence[int]], str]
) -> Iterator[OutcomeRow]:
    prompts = verdict.prompts
    single = (*SCORED, *APART)
    scored = {name: verdict.outcomes[name][0] for name in single if verdict.outcomes.get(name, ())}
    for index, (example, encoded) in enumerate(zip(prompts.examples, prompts.encoded, strict=True)):
        tokens = max(1, len(encoded.prompt.answer_ids))
        yield OutcomeRow(
            split,
            index,
            example.task,
            encoded.text,
            example.answer,
            {
                name: decode(found.predicted[index, :tokens].tolist())
                for name, found in scored.items()
            },
            {name: bool(found.correct[index]) for name, found in scored.items()},
            {name: float(found.log_probability[index]) for name, found in scored.items()},
        )


def _decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """Return a function from token ids to text that remembers what it decoded."""
    known: dict[tuple[int, ...], str] = {}

    def decode(ids: Sequence[int]) -> str:
        key = tuple(ids)
        if key not in known:
            known[key] = _decode(tokenizer, key)
        return known[key]

    return decode


def _decode(tokenizer: Any, ids: tuple[int, ...]) -> str:
    text = ""
    if tokenizer is not None:
        text = tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    # A model may have more output rows than its tokenizer has tokens.
    return text or " ".join(f"<token {token}>" for token in ids)
