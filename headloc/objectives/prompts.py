"""Prompts that are ready to be scored many times: encoded, batched, their prefixes cached.

Localization at the last prompt token leaves the keys and values of every earlier token untouched,
so the prefix is run once without gradient and each later pass runs the predicting columns alone.

Shapes: N prompts, T columns, P prompt columns, J predicting columns, H heads of a layer, d width of
a head, D width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.lm.batch import RowIndex, TokenBatch, as_row_index, collate
from headloc.lm.components import OffValues, read_components
from headloc.lm.passes import in_passes
from headloc.tasks import Encoded, Example, Template, encode_all, render

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.lm.prefix import PrefixCache

Progress = Callable[[int, int], None]

ROWS_PER_PASS = 256
"""Rows of a pass that needs no gradient."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """N prompts of one use (training, selection, final scores), ready for repeated scoring.

    Attributes:
        examples: what the prompts were rendered from.
        encoded: their text, token ids and spans.
        batch: the prompts as tensors on the model's device.
        prefix: keys and values of columns 0..P-2, or None when every pass runs all columns.
        counterfactual: the same queries behind other demonstrations, for resample ablation.
        resampled: outputs of `counterfactual` at the predicting columns: per layer the heads'
            z_NJHd, per feed-forward block m_NJD.
        reference: the same queries as the untouched model answers them, where that is another
            prompt (few-shot beside zero-shot).
        task_rows: row of each prompt's task in the task means [N].
        stream: what enters the insertion layer, x_NTD, at the columns that later passes run.
    """

    examples: tuple[Example, ...]
    encoded: tuple[Encoded, ...]
    batch: TokenBatch
    prefix: PrefixCache | None = None
    counterfactual: TokenBatch | None = None
    resampled: OffValues | None = None
    reference: PromptSet | None = None
    task_rows: Tensor | None = None
    stream: Tensor | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.batch.ids_BT.device


def encode_examples(
    lm: FrozenLM, examples: Sequence[Example], template: Template, add_bos: bool | None = None
) -> tuple[tuple[Encoded, ...], TokenBatch]:
    """Render and tokenise examples, and stack them into one batch on the model's device."""
    rendered = [render(example, template) for example in examples]
    encoded = encode_all(lm.tokenizer, rendered, add_bos=add_bos)
    batch = collate([item.prompt for item in encoded], lm.pad_id)
    return tuple(encoded), batch.to(lm.device)


def chunks(rows: int, size: int = ROWS_PER_PASS) -> list[slice]:
    """Return consecutive slices that cover `rows` rows."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def repeated(prompts: PromptSet, rows: RowIndex, times: int) -> Tensor:
    """Return the indices of some rows, each as often as it has gate sets."""
    every_N = torch.arange(len(prompts), device=prompts.device)
    return every_N[as_row_index(rows, prompts.device)].repeat_interleave(times)


@torch.no_grad()
def predicting_outputs(
    lm: FrozenLM, batch: TokenBatch, *, mlps: bool = False, progress: Progress | None = None
) -> OffValues:
    """Return the outputs z_NJHd and m_NJD at the predicting columns, by full passes."""

    def read(part: slice) -> tuple[list[Tensor], list[Tensor]]:
        with read_components(lm, mlps=mlps, columns=batch.predicting) as reading:
            lm.logits(batch.rows(part))
        return reading.z, reading.m

    found = in_passes(lm.passes, "means", len(batch), read, most=ROWS_PER_PASS, progress=progress)
    z = [torch.cat(layer) for layer in zip(*(heads for heads, _ in found), strict=True)]
    m = [torch.cat(block) for block in zip(*(blocks for _, blocks in found), strict=True)]
    return OffValues(z, m or None)
