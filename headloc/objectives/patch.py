"""The patch objective: replace head outputs of a zero-shot prompt by task means, in place.

    z'[l,h] = (1 - c[l,h]) z[l,h] + c[l,h] zbar_k[l,h]      at the last prompt token, every layer

Where the function vector adds everything at one layer, each head's mean enters here where the head
itself would have written it.

Shapes: B rows, A heads in flat order, H heads of a layer, d head width, J predicting columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from headloc.errors import HeadlocError
from headloc.lm.taps import gate_heads
from headloc.objectives.from_means import FromMeans
from headloc.objectives.prompts import PromptSet
from headloc.objectives.task_means import TaskMeans

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


class Patch(FromMeans):
    """Replace the zero-shot prompt's own head outputs by task means.

    Args:
        prompts_per_task: few-shot prompts per mean.
        cache_dir: folder in which means are kept between runs, or None.
    """

    name = "patch"

    def __init__(self, prompts_per_task: int = 100, cache_dir: str | None = None) -> None:
        super().__init__("zero", "none", prompts_per_task, cache_dir)
        self._z: tuple[Tensor, ...] = ()

    def describe(self) -> dict[str, object]:
        """Return the settings."""
        return {"name": self.name, "prompts_per_task": self.prompts_per_task}

    def _take(self, lm: FrozenLM, means: TaskMeans) -> None:
        super()._take(lm, means)
        self._z = tuple(z_KHd.to(lm.device) for z_KHd in means.z)

    def _gated(
        self, lm: FrozenLM, prompts: PromptSet, index: Tensor | slice, gates: Tensor
    ) -> Tensor:
        if prompts.task_rows is None:
            raise HeadlocError("These prompts do not know their tasks: make them by prompt_set().")
        batch = prompts.batch.rows(index)
        prefix = None if prompts.prefix is None else prompts.prefix.rows(index)
        rows = prompts.task_rows[index]
        means = [z_KHd[rows][:, None] for z_KHd in self._z]
        column = 0 if prefix is not None else batch.prompt_columns - 1
        at = slice(column, column + 1)
        # A coefficient opens the task's mean, so it closes the head's own output.
        with gate_heads(lm, 1.0 - gates.to(lm.device), off=means, columns=at):
            return lm.logits(batch, prefix)
