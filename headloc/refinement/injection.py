"""Score prompts with many vectors added to the residual stream, one (setting, prompt) pair a row.

The prompts' prefix and the stream that enters the insertion layer are cached, so a row costs its
predicting columns in the layers from the insertion point on, and nothing else.  Rows of different
settings share a pass: its size is bounded by memory alone.

Shapes: S settings, N prompts, B rows of a pass, K tasks, D model width, J predicting columns,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.evaluation.many import pairs_that_fit
from headloc.evaluation.metrics import answered_correctly
from headloc.lm.partial import reading_stream, starting_at, supports_partial
from headloc.lm.passes import in_passes
from headloc.lm.stream import StreamSite, add_to_stream
from headloc.objectives.prompts import Progress, PromptSet, chunks

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives import FunctionVector

ROWS_PER_PASS = 2048
"""(setting, prompt) pairs of a pass, unless their logits would be too many."""

_KIND = "added vectors"

VectorOf = Callable[[Tensor, Tensor], Tensor]
"""(setting_B, task row_B) -> the vector of every row, vector_BD."""


@dataclass(frozen=True, slots=True)
class Insertion:
    """Where a vector joins the stream: at one layer, at the last prompt token.

    Attributes:
        layer: the layer.
        site: attention, layer_input or layer_output.
    """

    layer: int
    site: StreamSite

    @classmethod
    def of(cls, objective: FunctionVector, lm: FrozenLM) -> Insertion:
        """Return the insertion point of an objective."""
        return cls(objective.insertion_layer(lm), objective.site)  # type: ignore[arg-type]

    def logits(
        self, lm: FrozenLM, prompts: PromptSet, rows_B: Tensor | slice, vector_BD: Tensor
    ) -> Tensor:
        """Return logits_BJV of some rows, each with its vector added."""
        batch = prompts.batch.rows(rows_B)
        prefix = None if prompts.prefix is None else prompts.prefix.rows(rows_B)
        at = last_column(prompts)
        with ExitStack() as stack:
            # The stream is put in first, so that a vector at the layer's input is added to it.
            if prompts.stream is not None:
                stack.enter_context(starting_at(lm, self.layer, prompts.stream[rows_B]))
            stack.enter_context(
                add_to_stream(lm, self.layer, vector_BD, site=self.site, columns=at)
            )
            return lm.logits(batch, prefix)


def last_column(prompts: PromptSet) -> slice:
    """Return the column of the last prompt token in the passes over these prompts."""
    column = 0 if prompts.prefix is not None else prompts.batch.prompt_columns - 1
    return slice(column, column + 1)


def known_tasks(prompts: PromptSet) -> Tensor:
    """Return the row of each prompt's task in the task means [N].

    Raises:
        HeadlocError: when the prompts were made without.
    """
    if prompts.task_rows is None:
        raise HeadlocError("These prompts do not know their tasks: make them by prompt_set().")
    return prompts.task_rows


@torch.no_grad()
def with_stream(lm: FrozenLM, prompts: PromptSet, layer: int) -> PromptSet:
    """Return the prompts with the stream that enters a layer, where the model can start there."""
    if layer == 0 or not supports_partial(lm, layer):
        return prompts
    streams = []
    with reading_stream(lm, layer) as seen:
        for part in chunks(len(prompts)):
            prefix = None if prompts.prefix is None else prompts.prefix.rows(part)
            lm.logits(prompts.batch.rows(part), prefix)
            streams.append(seen.pop())
    return replace(prompts, stream=torch.cat(streams))


@torch.no_grad()
def score_vectors(
    lm: FrozenLM,
    prompts: PromptSet,
    insertion: Insertion,
    settings: int,
    vector_of: VectorOf,
    *,
    rows_per_pass: int = ROWS_PER_PASS,
    progress: Progress | None = None,
) -> NDArray[np.bool_]:
    """Score every prompt under every setting.

    Args:
        lm: the frozen model.
        prompts: N prompts that know their tasks.
        insertion: where vectors are added.
        settings: number of settings S.
        vector_of: gives the vectors of the rows of a pass.
        rows_per_pass: rows that run together; only memory limits it.
        progress: called with (rows done, rows in all).

    Returns:
        correct_SN: whether the whole answer was right.

    Raises:
        HeadlocError: when `rows_per_pass` is not positive, or the prompts do not know their tasks.
    """
    total, n = settings * len(prompts), len(prompts)
    task_rows = known_tasks(prompts)
    if rows_per_pass < 1:
        raise HeadlocError(f"rows_per_pass is {rows_per_pass}; give at least 1.")

    def one_pass(part: slice) -> Tensor:
        flat_B = torch.arange(part.start, part.stop, device=prompts.device)
        row_B = flat_B % n
        vector_BD = vector_of(flat_B // n, task_rows[row_B])
        logits_BJV = insertion.logits(lm, prompts, row_B, vector_BD)
        return answered_correctly(logits_BJV, prompts.batch.target_BJ[row_B])

    most = pairs_that_fit(lm, prompts.batch.target_BJ.shape[1], rows_per_pass)
    found = in_passes(lm.passes, _KIND, total, one_pass, most=most, progress=progress)
    # Moved to the processor once, so that an accelerator never waits between passes.
    return torch.cat(found).view(settings, n).cpu().numpy()
