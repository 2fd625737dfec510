"""The rows that an attribution explains: their classes, and what their tokens are.

Shapes: N rows, T columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headloc.errors import HeadlocError
from headloc.lm.batch import Role, TokenBatch
from headloc.objectives.prompts import encode_examples
from headloc.randomness import stream
from headloc.tasks import Encoded, Example, Facts
from headloc.tasks.whole_prompts import AsItIs

from .base import NotApplicable, Subject
from .neuron_ablation import Outcome, outcome
from .stream_rows import answer_positions, cut_at
from .vocabulary import token_text

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

    from .attribution import Attribution

SUBJECT, REST, LAST, ANSWER = "subject", "rest", "last token", "answer"
_ROLES = {
    Role.BOS: "beginning of text", Role.PREFIX: "template", Role.INPUT: "inputs",
    Role.SEPARATOR: "template", Role.LABEL: "labels", Role.END: "template", Role.QUERY: "query",
    Role.OTHER: REST,
}  # fmt: skip


@dataclass(frozen=True)
class Explained:
    """Rows that are explained.

    Attributes:
        subject: what is analysed.
        examples: what each row was rendered from.
        encoded: its prompt.
        batch: the prompts, first target the token that is explained.
        asked: rows there were before the unknown ones were left out.
        known_A: which of them the model answers correctly.
    """

    subject: Subject
    examples: tuple[Example, ...]
    encoded: tuple[Encoded, ...]
    batch: TokenBatch
    asked: int
    known_A: NDArray[np.bool_]

    @property
    def lm(self) -> FrozenLM:
        """The model."""
        return self.subject.lm

    def classes(self, most: int) -> dict[str, NDArray[np.int64]]:
        """Return the rows of each class, of the `most` classes that have the most rows."""
        rows: dict[str, list[int]] = {}
        for row, example in enumerate(self.examples):
            rows.setdefault(example.task, []).append(row)
        largest = sorted(rows, key=lambda name: -len(rows[name]))[:most]
        return {name: np.array(rows[name]) for name in rows if name in largest}

    def columns(self, row: int) -> list[int]:
        """Return the columns of a row's tokens."""
        return [i for i, m in enumerate(self.batch.mask_BT[row].tolist()) if m]

    def tokens(self, row: int) -> list[str]:
        """Return the text of each of a row's tokens."""
        ids = self.batch.ids_BT[row].tolist()
        return [token_text(self.lm, ids[column]) for column in self.columns(row)]

    def answer(self, row: int) -> str:
        """Return the text of the token that is explained."""
        return token_text(self.lm, int(self.batch.target_BJ[row, 0]))

    def groups(self, row: int) -> list[str]:
        """Return what each of a row's tokens is: of the subject, of a label, the last one."""
        roles = self.encoded[row].prompt.roles
        names = [_ROLES.get(Role(role), REST) for role in roles]
        task = self.subject.task
        if isinstance(task, Facts) and self.examples[row].task in task.train:
            front = sum(role == Role.BOS for role in roles)
            inside = _inside(self.lm, self.encoded[row].text, task.fact(self.examples[row]).subject)
            names[front:] = [SUBJECT if of else REST for of in inside]
        extra = len(self.columns(row)) - len(names)
        names = [*names, *[ANSWER] * extra]
        return [*names[:-1], LAST]


def _inside(lm: FrozenLM, text: str, part: str) -> list[bool]:
    """Return whether each token of a text holds a character of a part of it."""
    tokenizer: Any = lm.tokenizer
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = text.find(part) if part else -1
    stop = start + len(part)
    return [start >= 0 and a < stop and b > start for a, b in offsets["offset_mapping"]]


def explain(
    subject: Subject, options: Attribution, rows_of: Callable[[FrozenLM, TokenBatch], int]
) -> Explained:
    """Return the rows that an analysis explains.

    Args:
        subject: what is analysed.
        options: which prompts, and how many of their answers' tokens.
        rows_of: how many rows of a batch are run together.

    Raises:
        NotApplicable: when the model answers none of the prompts.
    """
    lm, examples = subject.lm, _examples(subject, options)
    template = AsItIs() if options.prompt is not None else subject.task.template
    encoded, whole = encode_examples(lm, examples, template)
    owners, columns = answer_positions(whole, options.answer_tokens)
    batch = cut_at(lm, whole, owners, columns)
    limit = rows_of(lm, batch)
    parts = [batch.rows(slice(i, i + limit)) for i in range(0, len(batch), limit)]
    known = (Outcome.joined([outcome(lm, part) for part in parts]).rank_B == 1).numpy()
    keep = np.flatnonzero(known) if options.known_only else np.arange(len(batch))
    if not len(keep):
        raise NotApplicable(
            f"{lm.source.name!r} answers none of the {len(examples)} prompts correctly. "
            "Explain its failures with analysis.known_only=false, or choose other prompts."
        )
    kept = keep.tolist()
    return Explained(
        subject, tuple(examples[owners[i]] for i in kept),
        tuple(encoded[owners[i]] for i in kept), batch.rows(kept), len(batch), known,
    )  # fmt: skip


def _examples(subject: Subject, options: Attribution) -> list[Example]:
    if options.prompt is not None:
        if not options.prompt.strip():
            raise HeadlocError("analysis.prompt is empty. Give the text before the answer.")
        answer = options.target or _own_answer(subject.lm, options.prompt)
        return [Example("prompt", (), options.prompt, answer)]
    if isinstance(subject.task, Facts):
        rng = stream(subject.seed, "analysis", "attribution")
        return subject.task.draw(options.prompts, rng, split="train")
    return subject.examples(options.prompts, "attribution")


def _own_answer(lm: FrozenLM, prompt: str) -> str:
    """Return the model's most probable next token as text."""
    import torch

    if lm.tokenizer is None:
        raise HeadlocError("The model has no tokenizer, so a prompt cannot be read.")
    ids = lm.tokenizer(prompt, return_tensors="pt").input_ids.to(lm.device)
    with torch.no_grad():
        token = int(lm.model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
    # Decoded together: a token on its own may lose the blank in front.
    both, alone = (
        str(lm.tokenizer.decode(row, skip_special_tokens=True))
        for row in ([*ids[0].tolist(), token], ids[0].tolist())
    )
    text = both[len(alone) :]
    if not text.strip():
        raise HeadlocError(
            f"The model goes on with {text!r}, which is not visible text. Give analysis.target."
        )
    return text
