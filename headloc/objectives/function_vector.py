"""The function-vector objective (Hu et al. 2025, localization).

    v_k(c) = sum_{l,h} [c[l,h] zbar_k[l,h] + (1 - c[l,h]) off[l,h]] W_O[l,h]
    loss   = - sum_j log p(y_j | zero-shot prompt, y_<j ; residual += v_k(c)) + sparsity

Where feed-forward blocks are gated too, c[l] mbar_k[l] joins the sum for each, with mbar_k[l] what
the block adds to the residual stream on average: in families that normalise it first (gemma2, glm4,
olmo2, ...) the normalised output, while head contributions are those before such a norm.

v is added to the output of the attention of one layer, by default a third of the depth, at the last
prompt token; for answers of several tokens it stays there.  With G_k = [zbar_k[l,h] W_O[l,h]]
precomputed, v is one product with the gates.  The layers below the insertion point see nothing of
v: where a probe agrees, they run once per prompt and a training step starts above them.

Shapes: B rows, G gate sets, S rows of all gate sets, A heads in flat order, K tasks, D model width,
J predicting columns, V vocabulary.
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
from headloc.lm.batch import RowIndex
from headloc.lm.partial import reading_stream, starting_at, supports_partial
from headloc.lm.passes import in_passes
from headloc.lm.stream import add_to_stream
from headloc.objectives.from_means import FromMeans, ZeroShotRows
from headloc.objectives.prompts import ROWS_PER_PASS, Progress, PromptSet, repeated
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
        off_value: zero (absent from the sum, as published for training), mean (cross-task) or
            shuffled (mean over few-shot prompts with shuffled labels).
        relative_to: none (raw means, as published) or zero_shot.
        prompts_per_task: few-shot prompts per mean.
        cache_dir: folder in which means are kept between runs, or None.
        mlps: let the means of the feed-forward blocks join the sum.
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
        mlps: bool = False,
    ) -> None:
        super().__init__(off_value, relative_to, prompts_per_task, cache_dir, mlps)
        _check_site(site)
        if layer is not None and type(layer) is not int:
            raise HeadlocError(
                f"objective.layer={layer!r} must be a layer's number, or null for a third of the "
                "depth."
            )
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
        """Return v_BD for gates [A] or [B, A] and the tasks of B rows; v_BGD for [B, G, A]."""
        if self._contributions_KAD is None:
            raise HeadlocError("The task means are missing: call prepare() first.")
        _check_count(gates, self._contributions_KAD)
        means_BAD = self._contributions_KAD[task_rows]
        gates = gates.expand(len(task_rows), -1) if gates.ndim == 1 else gates
        if self._off_AD is None:
            return torch.einsum("b...a,bad->b...d", gates, means_BAD)
        # The off-values of all heads, and what opening a head changes.
        change_BAD = means_BAD - self._off_AD
        return self._off_AD.sum(0) + torch.einsum("b...a,bad->b...d", gates, change_BAD)

    @property
    def off_contributions(self) -> Tensor | None:
        """What closed heads add to the stream [A, D]; None where that is nothing."""
        return self._off_AD

    def prompt_set(
        self,
        lm: FrozenLM,
        task: TaskFamily,
        examples: Sequence[Example],
        *,
        seed: int,
        use: str,
        progress: Progress | None = None,
    ) -> PromptSet:
        """Encode zero-shot prompts and run them up to the insertion layer."""
        return self.resumed(
            lm, super().prompt_set(lm, task, examples, seed=seed, use=use, progress=progress)
        )

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

        def read(part: slice) -> Tensor:
            prefix = None if prompts.prefix is None else prompts.prefix.rows(part)
            with reading_stream(lm, layer) as seen:
                lm.logits(prompts.batch.rows(part), prefix)
            return seen.pop().to(lm.device)

        with torch.no_grad():
            streams = in_passes(lm.passes, "evaluation", len(prompts), read, most=ROWS_PER_PASS)
        return replace(prompts, stream=torch.cat(streams))

    def _take(self, lm: FrozenLM, means: TaskMeans) -> None:
        super()._take(lm, means)
        self.insertion_layer(lm)
        self._contributions_KAD = means.contributions(lm).float()
        if self.off_value == "mean":
            rows = means.index(self.train_tasks)
            self._off_AD = self._contributions_KAD[rows].mean(0)
        elif self.shuffled is not None:
            self._off_AD = self.shuffled.contributions(lm).float().mean(0)

    def branched_logits(
        self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates_BGA: Tensor
    ) -> Tensor:
        """Return logits_BGJV of some zero-shot prompts under the vectors of G gate sets."""
        task_rows = ZeroShotRows.of(prompts, rows).task_rows
        vector_BGD = self.vectors(gates_BGA.to(lm.device), task_rows)
        # The contributions of a task are picked once a prompt: they are A times as wide as a row.
        zero_shot = ZeroShotRows.of(prompts, repeated(prompts, rows, gates_BGA.shape[1]))
        logits_SJV = self._added(lm, zero_shot, vector_BGD.flatten(0, 1))
        return logits_SJV.unflatten(0, vector_BGD.shape[:2])

    def _gated(self, lm: FrozenLM, rows: ZeroShotRows, gates: Tensor) -> Tensor:
        return self._added(lm, rows, self.vectors(gates, rows.task_rows))

    def _added(self, lm: FrozenLM, rows: ZeroShotRows, vector_BD: Tensor) -> Tensor:
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


def _check_count(gates: Tensor, contributions_KAD: Tensor) -> None:
    expected = contributions_KAD.shape[1]
    if gates.shape[-1] != expected:
        raise HeadlocError(
            f"{gates.shape[-1]} coefficients do not fit the {expected} contributions of this "
            "function vector. Feed-forward blocks have coefficients of their own where they are "
            "gated, and none where they are not."
        )


def _check_site(site: str) -> None:
    if site not in SITES:
        raise HeadlocError(f"objective.site={site!r} is unknown. {suggest(site, SITES)}")
