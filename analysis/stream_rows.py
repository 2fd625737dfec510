"""Which rows the stream is read for: any position of any prompt, as many at a time as fit.

Causal attention lets a prompt that is cut behind a position have the same stream there, so that a
position in the middle is the last token of a shorter prompt.

Shapes: B rows, S positions, T columns, H heads of a layer, d head width, D model width, N neurons,
L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headloc.errors import HeadlocError
from headloc.lm.batch import EncodedPrompt, TokenBatch, collate

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

_BYTES = 8


def cut_at(
    lm: FrozenLM, batch: TokenBatch, rows: Sequence[int], columns: Sequence[int]
) -> TokenBatch:
    """Return one row per position: the prompt up to that column, its target the token behind.

    Args:
        lm: the frozen model.
        batch: the prompts, with or without the columns of their answers.
        rows: row of each of the S positions.
        columns: column of each; every token before it is kept.

    Raises:
        HeadlocError: for a column that is padding or outside the batch.
    """
    ids, mask = batch.ids_BT.tolist(), batch.mask_BT.tolist()
    targets = batch.target_BJ.tolist()
    prompts = []
    for row, column in zip(rows, columns, strict=True):
        if not 0 <= column < len(ids[row]) or not mask[row][column]:
            raise HeadlocError(f"Column {column} of row {row} holds no token of a prompt.")
        kept = tuple(i for i, m in zip(ids[row][: column + 1], mask[row], strict=False) if m)
        answer = column - batch.prompt_columns + 1
        behind = targets[row][answer] if answer >= 0 else ids[row][column + 1]
        prompts.append(EncodedPrompt(kept, () if behind < 0 else (behind,), (0,) * len(kept)))
    return collate(prompts, lm.pad_id)


def answer_positions(batch: TokenBatch, most: int) -> tuple[list[int], list[int]]:
    """Return rows and columns that predict the first `most` tokens of every answer."""
    rows, columns = [], []
    for row, targets in enumerate(batch.target_BJ.tolist()):
        for place, token in enumerate(targets[:most]):
            if token >= 0:
                rows.append(row)
                columns.append(batch.prompt_columns - 1 + place)
    return rows, columns


def rows_that_fit(lm: FrozenLM, columns: int, memory: float) -> int:
    """Return how many prompts' parts fit into an amount of memory, at least one.

    Counted are the parts of the stream of all layers, the coefficients of all neurons, those of
    attention neurons by position, and the probabilities of every layer's base.

    Args:
        lm: the frozen model.
        columns: tokens of the longest prompt.
        memory: bytes.
    """
    layers = lm.layout.layers
    heads = sum(layer.heads * (lm.width + 2 * columns * layer.width) for layer in layers)
    neurons = _neurons(lm) * len(lm.mlps)
    streams = len(lm.mlps) * (6 * lm.width + 3 * lm.vocab_size)
    return max(1, int(memory // (_BYTES * (heads + 2 * neurons + streams))))


def _neurons(lm: FrozenLM) -> int:
    config = lm.model.config.get_text_config()
    names = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    found = [getattr(config, name, None) for name in names]
    return max((size for size in found if isinstance(size, int)), default=4 * lm.width)
