"""The patch objective: replace head outputs of a zero-shot prompt by task means, in place.

    z'[l,h] = (1 - c[l,h]) z[l,h] + c[l,h] zbar_k[l,h]      at the last prompt token, every layer
    m'[l]   = (1 - c[l]) m[l] + c[l] mbar_k[l]              where feed-forward blocks are gated too

Where the function vector adds everything at one layer, each head's mean enters here where the head
itself would have written it.

Shapes: B rows, A heads in flat order, K tasks, H heads of a layer, d head width, D model width,
J predicting columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from headloc.lm.components import OffValues, gate_components
from headloc.objectives.from_means import FromMeans, ZeroShotRows
from headloc.objectives.task_means import TaskMeans

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


class Patch(FromMeans):
    """Replace the zero-shot prompt's own head outputs by task means.

    Args:
        prompts_per_task: few-shot prompts per mean.
        cache_dir: folder in which means are kept between runs, or None.
        mlps: patch the feed-forward blocks too.
    """

    name = "patch"

    def __init__(
        self, prompts_per_task: int = 100, cache_dir: str | None = None, mlps: bool = False
    ) -> None:
        super().__init__("zero", "none", prompts_per_task, cache_dir, mlps)
        self._z: tuple[Tensor, ...] = ()
        self._m: tuple[Tensor, ...] = ()

    def describe(self) -> dict[str, object]:
        """Return the settings."""
        return self._with_mlps({"name": self.name, "prompts_per_task": self.prompts_per_task})

    def _take(self, lm: FrozenLM, means: TaskMeans) -> None:
        super()._take(lm, means)
        self._z = tuple(z_KHd.to(lm.device) for z_KHd in means.z)
        self._m = tuple(m_KD.to(lm.device) for m_KD in means.mlps)

    def _gated(self, lm: FrozenLM, rows: ZeroShotRows, gates: Tensor) -> Tensor:
        means = OffValues(
            [z_KHd[rows.task_rows][:, None] for z_KHd in self._z],
            [m_KD[rows.task_rows][:, None] for m_KD in self._m] or None,
        )
        at = rows.last_prompt_token
        # A coefficient opens the task's mean, so it closes the component's own output.
        with gate_components(lm, self.components(lm), 1.0 - gates, off=means, columns=at):
            return lm.logits(rows.batch, rows.prefix)
