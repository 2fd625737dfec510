"""Fresh prompts in chunks, edits of heads at the last prompt token, and what the model answers.

A chunk holds its prompts' prefix cache, is put to all the questions there are, and is dropped:
memory grows with the size of a chunk and not with the number of prompts.

Shapes: B rows, J answer tokens, T columns, H heads of a layer, d head width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.lm.batch import IGNORE, TokenBatch
from headloc.lm.taps import tap_heads
from headloc.objectives.prompts import encode_examples
from headloc.tasks import Encoded, Example

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.lm.prefix import PrefixCache
    from headloc.tasks import Template

ROWS = 128
"""Prompts of a chunk."""

_NUMBER = re.compile(r"\s*([-\u2212]?\d+)")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some prompts, ready to be answered many times.

    Attributes:
        rows: which of all prompts they are.
        examples: what they were rendered from.
        encoded: their tokens and spans.
        batch: their tensors.
        prefix: keys and values before the last prompt token, or None.
    """

    rows: slice
    examples: tuple[Example, ...]
    encoded: tuple[Encoded, ...]
    batch: TokenBatch
    prefix: PrefixCache | None

    @property
    def last(self) -> slice:
        """Column of the last prompt token in the forwards of this chunk."""
        column = 0 if self.prefix is not None else self.batch.prompt_columns - 1
        return slice(column, column + 1)


def prompt_chunks(
    lm: FrozenLM, template: Template, examples: Sequence[Example], rows: int = ROWS
) -> Iterator[Chunk]:
    """Yield examples as chunks of prompts."""
    for start in range(0, len(examples), rows):
        part = tuple(examples[start : start + rows])
        encoded, batch = encode_examples(lm, part, template)
        cached = lm.supports_prefix_cache and batch.prompt_columns > 1
        prefix = lm.prefix(batch, rows_per_chunk=rows) if cached else None
        yield Chunk(slice(start, start + len(part)), part, encoded, batch, prefix)


@dataclass(frozen=True, slots=True)
class Edit:
    """An affine change of one head's output at the last prompt token: z -> z M + shift.

    Attributes:
        matrix_dd: M; None for the identity.
        shift: added afterwards, `[d]`, or one per row `[B, d]`.
    """

    matrix_dd: Tensor | None
    shift: Tensor


def edit_heads(lm: FrozenLM, edits: Mapping[HeadId, Edit], columns: slice) -> Any:
    """Apply edits to some columns of every forward while the block is open.

    Raises:
        HeadlocError: for a head that the model does not have.
    """
    if not edits:
        return nullcontext()
    known = {layer.layer: position for position, layer in enumerate(lm.layout.layers)}
    by_position: dict[int, dict[int, Edit]] = {}
    for head, edit in edits.items():
        lm.layout.index(head)
        by_position.setdefault(known[head.layer], {})[head.head] = edit

    def change(position: int, z_BTHd: Tensor) -> Tensor:
        out_BTHd = z_BTHd.clone()
        for head, edit in by_position[position].items():
            out_BTHd[:, columns, head] = _edited(z_BTHd[:, columns, head], edit)
        return out_BTHd

    return tap_heads(lm, change, layers=sorted({head.layer for head in edits}))


def _edited(z_BTd: Tensor, edit: Edit) -> Tensor:
    dtype = torch.float64 if z_BTd.dtype == torch.float64 else torch.float32
    new = z_BTd.to(dtype)
    if edit.matrix_dd is not None:
        new = new @ edit.matrix_dd.to(new)
    shift = edit.shift.to(new)
    return (new + (shift[:, None] if shift.ndim == 2 else shift)).to(z_BTd.dtype)


@torch.no_grad()
def answers(
    lm: FrozenLM,
    chunk: Chunk,
    edits: Mapping[HeadId, Edit] | None = None,
    *,
    rows: Tensor | None = None,
    context: Any = None,
) -> Tensor:
    """Return the tokens that the model answers greedily, token_BJ.

    Args:
        lm: the frozen model.
        chunk: the prompts.
        edits: edits of heads at the last prompt token, aligned with `rows`.
        rows: rows of the chunk, repetitions allowed; all when None.
        context: a function that opens a further intervention for a forward, or None.
    """
    batch, prefix = open_answers(chunk.batch), chunk.prefix
    if rows is not None:
        batch = batch.rows(rows)
        prefix = None if prefix is None else prefix.rows(rows)
    first, count = batch.prompt_columns, batch.target_BJ.shape[1]
    ids_BT = batch.ids_BT.clone()
    token_BJ = torch.zeros_like(batch.target_BJ)
    for step in range(count):
        current = replace(batch, ids_BT=ids_BT)
        opened = nullcontext() if context is None else context()
        with edit_heads(lm, edits or {}, chunk.last), opened:
            logits_BJV = lm.logits(current, prefix)
        token_BJ[:, step] = logits_BJV[:, step].argmax(-1)
        if step + 1 < count:
            ids_BT[:, first + step] = token_BJ[:, step]
    return token_BJ


def open_answers(batch: TokenBatch) -> TokenBatch:
    """Return the batch with every answer column visible, as generation needs it."""
    mask_BT = batch.mask_BT.clone()
    mask_BT[:, batch.prompt_columns :] = 1
    return replace(batch, mask_BT=mask_BT, position_ids_BT=(mask_BT.cumsum(-1) - 1).clamp(min=0))


def right(token_BJ: Tensor, target_BJ: Tensor) -> Tensor:
    """Return whether every answer token is the target's, right_B."""
    return ((token_BJ == target_BJ) | (target_BJ == IGNORE)).all(1)


def numbers(lm: FrozenLM, token_BJ: Tensor) -> list[int | None]:
    """Return the whole number that each answer begins with, None where there is none.

    Raises:
        HeadlocError: when the model has no tokenizer.
    """
    if lm.tokenizer is None:
        raise HeadlocError("The model has no tokenizer, so its answers cannot be read as numbers.")
    texts = [lm.tokenizer.decode(row) for row in token_BJ.tolist()]
    found = [_NUMBER.match(text) for text in texts]
    return [None if match is None else int(match[1].replace("\u2212", "-")) for match in found]


def label_columns(chunk: Chunk) -> Tensor:
    """Return the column of the last token of each demonstration's label, column_BN.

    Raises:
        HeadlocError: when a prompt has another number of demonstrations, or a label has no token.
    """
    rows = []
    for item in chunk.encoded:
        front = chunk.batch.prompt_columns - len(item.prompt.prompt_ids)
        spans = [span for span in item.spans if span.kind == "label"]
        if any(span.start == span.stop for span in spans):
            raise HeadlocError(
                "A label has no token of its own (the tokenizer joins it to its neighbours). Use a "
                "template with a separator that stands apart."
            )
        rows.append([front + span.stop - 1 for span in spans])
    if len({len(row) for row in rows}) != 1:
        raise HeadlocError("Prompts with different numbers of demonstrations cannot be compared.")
    return torch.tensor(rows, dtype=torch.int64, device=chunk.batch.ids_BT.device)
