"""Where the prompt ends and the answer begins, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headloc.errors import TaskError

_SHOWN = 6
_ADVICE = (
    "Change the template: end it with a character that the tokenizer keeps apart from the answer, "
    'such as task.template=arrow ("->") or question_answer ("Answer:").'
)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The tokens of a prompt with its answer.

    Attributes:
        text: prompt and answer.
        boundary: the character at which the prompt ends, blanks at its end left out.
        content: the answer's first visible character; only blanks stand between the two.
        front: special tokens the tokenizer puts in front by default.
        ids: the other tokens.
        offsets: first and last character of each of `ids`, without gaps between them.
    """

    text: str
    boundary: int
    content: int
    front: tuple[int, ...]
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]

    def piece(self, token: int) -> str:
        """The text of a token."""
        start, stop = self.offsets[token]
        return self.text[start:stop]


def normalise_offsets(offsets: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Close the gaps in front of tokens.

    Some tokenizers report a token without the blank it begins with (`trim_offsets`), or drop
    blanks; either way the characters go to the token that follows.
    """
    out: list[tuple[int, int]] = []
    reached = 0
    for start, stop in offsets:
        out.append((min(start, reached), max(stop, reached) if start >= reached else stop))
        reached = max(reached, stop)
    return tuple(out)


def split_answer(pieces: Pieces) -> int:
    """Index of the answer's first token: the one with the answer's first visible character.

    Raises:
        TaskError: when that token begins inside the prompt, or one of the sides has no token.
    """
    reaching = (i for i, (_, stop) in enumerate(pieces.offsets) if stop > pieces.content)
    cut = next(reaching, len(pieces.ids))
    if cut in (0, len(pieces.ids)):
        side = "prompt" if cut == 0 else "answer"
        raise TaskError(
            f"The tokenizer gives the {side} in {pieces.text[-60:]!r} no token of its own, so it "
            f"is not scorable. {_ADVICE}"
        )
    if pieces.offsets[cut][0] < pieces.boundary:
        raise TaskError(
            f"The boundary between prompt and answer is inside a token: {_show(pieces, cut)}. "
            f"{_ADVICE}"
        )
    return cut


def check_prefix(tokenizer: Any, pieces: Pieces, cut: int, alone: Sequence[int]) -> None:
    """Compare the prompt's tokens with those of the prompt alone.

    Raises:
        TaskError: when they differ, so that the model would not read the prompt it is scored on.
    """
    if tuple(alone) == pieces.ids[:cut]:
        return
    joint = tokenizer.convert_ids_to_tokens(list(pieces.ids[:cut]))[-_SHOWN:]
    single = tokenizer.convert_ids_to_tokens(list(alone))[-_SHOWN:]
    raise TaskError(
        "The prompt has other tokens when its answer follows: it ends with "
        f"{joint} in front of the answer but with {single} alone. {_ADVICE}"
    )


def _show(pieces: Pieces, straddling: int) -> str:
    first = max(0, straddling - 2)
    shown = [repr(pieces.piece(i)) for i in range(first, min(len(pieces.ids), straddling + 3))]
    return f"{' '.join(shown)}, where {pieces.piece(straddling)!r} holds both"
