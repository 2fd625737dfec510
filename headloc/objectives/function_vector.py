"""The function-vector objective (Hu et al. 2025, METHODS 3.1).

    v_k(c) = sum_{l,h} [c[l,h] zbar_k[l,h] + (1 - c[l,h]) off[l,h]] W_O[l,h]
    loss   = - sum_j log p(y_j | zero-shot prompt, y_<j ; residual += v_k(c)) + sparsity

v is added to the output of the attention of one layer, by default a third of the depth, at the last
prompt token; for answers of several tokens it stays there.  With G_k = [zbar_k[l,h] W_O[l,h]]
precomputed, v is one product with the gates.  The layers below the insertion point see nothing of
v: where a probe agrees, they run once per prompt and a training step starts above them.

Shapes: B rows, A heads in flat order, K tasks, D model width, J predicting columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headloc.errors import HeadlocError, suggest
from headloc.lm.partial import reading_stream, starting_at, supports_partial
from headloc.lm.stream import add_to_stream
from headloc.objectives.from_means import FromMeans, ZeroShotRows
from headloc.objectives.prompts import PromptSet, chunks
from headloc.objectives.task_means import TaskMeans

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Example, TaskFamily

SITES = ("attention", "layer_input", "layer_output")
"""Where a vector may enter a layer."""


class FunctionVector(FromMeans):
    """Add the gated sum of task means to the stream of a zero-shot prompt.

    Args:
        layer: insertion layer; None for a third of the depth.
        site: attention (before the layer's MLP, as published), layer_input or layer_output.
        off_value: zero (absent from the sum, as published for training) or mean (cross-task).
        relative_to: none (raw means, as published) or zero_shot.
        prompts_per_task: few-shot prompts per mean.
        cache_dir: folder in which means are kept between runs, or None.
    """

    name = "function_vector"

    def __init__(
        self,
        layer: int | None = None,
        site: str = "attention",
        off_value: str = "zero",
        relative_to: str = "none",
        prompts_per_task: int = 100,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(off_value, relative_to, prompts_per_task, cache_dir)
        _check_site(site)
        self.layer, self.site = layer, site
        self._contributions_KAD: Tensor | None = None
        self._off_AD: Tensor | None = None

    def describe(self) -> dict[str, Any]:
        """Return the settings."""
        return {**super().describe(), "layer": self.layer, "site": self.site}

    def prepare(self, lm: FrozenLM, task: TaskFamily, **options: Any) -> None:
        """Estimate the means, unless the model has no such insertion layer."""
        self.insertion_layer(lm)
        super().prepare(lm, task, **options)

    def insertion_layer(self, lm: FrozenLM) -> int:
        """Return the layer of insertion.

        Raises:
            HeadlocError: when the model has no such layer.
        """
        depth = lm.layout.layers[-1].layer + 1
        layer = depth // 3 if self.layer is None else self.layer
        if not 0 <= layer < depth:
            raise HeadlocError(
                f"objective.layer={layer} is out of range: the model has layers 0..{depth - 1}. "
                f"A third of the depth is {depth // 3}."
            )
        return layer

    def vectors(self, gates: Tensor, task_rows: Tensor) -> Tensor:
        """Return v_BD for gates [A] or [B, A] and the tasks of B rows."""
        if self._contributions_KAD is None:
            raise HeadlocError("The task means are missing: call prepare() first.")
        means_BAD = self._contributions_KAD[task_rows]
        gates_BA = gates.expand(len(task_rows), -1)
        if self._off_AD is None:
            return torch.einsum("ba,bad->bd", gates_BA, means_BAD)
        # The off-values of all heads, and what opening a head changes.
        change_BAD = means_BAD - self._off_AD
        return self._off_AD.sum(0) + torch.einsum("ba,bad->bd", gates_BA, change_BAD)

    def prompt_set(
        self, lm: FrozenLM, task: TaskFamily, examples: Sequence[Example], *, seed: int, use: str
    ) -> PromptSet:
        """Encode zero-shot prompts and run them up to the insertion layer."""
        return self.resumed(lm, super().prompt_set(lm, task, examples, seed=seed, use=use))

    def at(self, layer: int, site: str) -> FunctionVector:
        """Return this objective at another insertion layer and site, with the same means.

        Raises:
            HeadlocError: when the site is unknown.
        """
        _check_site(site)
        other = copy(self)
        other.layer, other.site = layer, site
        return other

    def resumed(self, lm: FrozenLM, prompts: PromptSet) -> PromptSet:
        """Return prompts of this or another insertion layer, run up to this one.

        Raises:
            HeadlocError: when the model has no such layer.
        """
        layer = self.insertion_layer(lm)
        if layer == 0 or not supports_partial(lm, layer):
            return replace(prompts, stream=None)
        streams = []
        with torch.no_grad(), reading_stream(lm, layer) as seen:
            for part in chunks(len(prompts)):
                prefix = None if prompts.prefix is None else prompts.prefix.rows(part)
                lm.logits(prompts.batch.rows(part), prefix)
                streams.append(seen.pop())
        return replace(prompts, stream=torch.cat(streams))

    def _take(self, lm: FrozenLM, means: TaskMeans) -> None:
        super()._take(lm, means)
        self.insertion_layer(lm)
        self._contributions_KAD = means.contributions(lm).float()
        if self.off_value == "mean":
            rows = means.index(self.train_tasks)
            self._off_AD = self._contributions_KAD[rows].mean(0)

    def _gated(self, lm: FrozenLM, rows: ZeroShotRows, gates: Tensor) -> Tensor:
        vector_BD = self.vectors(gates, rows.task_rows)
        layer = self.insertion_layer(lm)
        at = rows.last_prompt_token
        with ExitStack() as stack:
            # First: at site=layer_input the vector joins the stream that is handed to the layer.
            if rows.stream is not None:
                stack.enter_context(starting_at(lm, layer, rows.stream))
            stack.enter_context(
                add_to_stream(lm, layer, vector_BD, site=self.site, columns=at)  # type: ignore[arg-type]
            )
            return lm.logits(rows.batch, rows.prefix)


def _check_site(site: str) -> None:
    if site not in SITES:
        raise HeadlocError(f"objective.site={site!r} is unknown. {suggest(site, SITES)}")
