"""The in-place objective: scale head outputs of the few-shot prompt itself.

Source: the in-place form of the experiments of Hu et al. 2025.

    z'[l,h] = g[l,h] z[l,h] + (1 - g[l,h]) base[l,h]      at the gated positions
    m'[l]   = g[l] m[l] + (1 - g[l]) base[l]              where feed-forward blocks are gated too
    loss    = cross entropy of the answer, or KL(full model || gated model)

With positions="last" the gated positions are those that predict an answer token: the last prompt
token and, for answers of several tokens, the answer tokens before the final one.  The prompt before
them is run once and cached.  With positions="all" every token is gated and every pass is a full
one.

Shapes: B rows, G gate sets, A heads in flat order, J predicting columns, V vocabulary, H heads of a
layer, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from headloc.errors import HeadlocError, suggest
from headloc.lm.batch import IGNORE, RowIndex, TokenBatch, as_row_index
from headloc.lm.branches import branch_logits, supports_branches, within_window
from headloc.lm.components import OffValues, gate_components, read_components
from headloc.objectives.base import Objective
from headloc.objectives.counterfactual import counterfactual_batch
from headloc.objectives.off_values import ESTIMATED, RoleMeans, check_off_value, role_means
from headloc.objectives.prompts import (
    Progress,
    PromptSet,
    encode_examples,
    predicting_outputs,
    repeated,
)
from headloc.randomness import stream

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Example, TaskFamily

_LOSSES = ("cross_entropy", "kl")
_POSITIONS = ("last", "all")


class InPlace(Objective):
    """Gate the heads of the few-shot prompt.

    Args:
        off_value: what a closed head puts out: zero, mean (over few-shot prompts of all training
            tasks), shuffled (the same with the demonstrations' labels shuffled) or resample.
        loss: cross_entropy against the answer, or kl against the full model.
        positions: last (the predicting positions, through the prefix cache) or all.
        prefix_cache: set False to run positions="last" by full passes.
        mlps: gate every feed-forward block too.
    """

    name = "in_place"
    takes_mlps = True

    def __init__(
        self,
        off_value: str = "mean",
        loss: str = "cross_entropy",
        positions: str = "last",
        prefix_cache: bool = True,
        mlps: bool = False,
    ) -> None:
        for key, value, known in (("loss", loss, _LOSSES), ("positions", positions, _POSITIONS)):
            if value not in known:
                raise HeadlocError(f"objective.{key}={value!r} is unknown. {suggest(value, known)}")
        self.off_value = check_off_value(off_value)
        self.loss_kind, self.positions, self.prefix_cache = loss, positions, prefix_cache
        self.mlps = mlps
        self.means: RoleMeans | None = None

    def describe(self) -> dict[str, Any]:
        """Return the settings."""
        return self._with_mlps(
            {
                "name": self.name,
                "off_value": self.off_value,
                "loss": self.loss_kind,
                "positions": self.positions,
            }
        )

    def prepare(
        self,
        lm: FrozenLM,
        task: TaskFamily,
        *,
        seed: int,
        prompts: int = 500,
        progress: Progress | None = None,
    ) -> None:
        """Estimate the mean of every gated component, when that is the off-value.

        Raises:
            TaskError: when labels are to be shuffled and cannot be.
        """
        if self.off_value not in ESTIMATED:
            return
        examples = task.draw(prompts, stream(seed, "means"), split="train", items="fit")
        if self.off_value == "shuffled":
            rng = stream(seed, "means", "shuffled")
            examples = [task.shuffled(example, rng) for example in examples]
        _, batch = encode_examples(lm, examples, task.template)
        means = role_means(
            lm,
            batch,
            predicting_only=self.positions == "last",
            mlps=self.mlps,
            progress=progress,
        )
        self.means = means.with_answers()

    def tensors(self) -> dict[str, Tensor]:
        """Return the mean outputs."""
        return {} if self.means is None else self.means.to_tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor], lm: FrozenLM, task: TaskFamily) -> None:
        """Take the mean outputs of a saved circuit."""
        if self.off_value in ESTIMATED:
            on_device = {name: tensor.to(lm.device) for name, tensor in tensors.items()}
            means = RoleMeans.from_tensors(on_device, lm, mlps=self.mlps)
            self.means = means.with_answers()

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
        """Encode few-shot prompts and cache their prefixes and counterfactual outputs."""
        encoded, batch = encode_examples(lm, examples, task.template)
        if self.means is not None and self.positions == "all":
            self.means.require(batch.role_BT)
        cached = self.positions == "last" and self.prefix_cache
        prefix = lm.kept_prefix(batch, progress=progress) if cached else None
        counterfactual, resampled = None, None
        if self.off_value == "resample":
            counterfactual = counterfactual_batch(
                lm,
                task,
                examples,
                encoded,
                seed=seed,
                use=use,
                equal_lengths=self.positions == "all",
            )
            if self.positions == "last":
                resampled = predicting_outputs(lm, counterfactual, mlps=self.mlps)
        return PromptSet(tuple(examples), encoded, batch, prefix, counterfactual, resampled)

    def logits(
        self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates: Tensor | None
    ) -> Tensor:
        """Return logits_BJV of some rows under gates [A] or [B, A]; None is the untouched model."""
        index = as_row_index(rows, prompts.device)
        batch = prompts.batch.rows(index)
        prefix = None if prompts.prefix is None else prompts.prefix.rows(index)
        if gates is None:
            return lm.logits(batch, prefix)
        off = self._off(lm, prompts, index, batch)
        last_of_full_pass = self.positions == "last" and prefix is None
        columns = batch.predicting if last_of_full_pass else None
        with gate_components(lm, self.components(lm), gates, off=off, columns=columns):
            return lm.logits(batch, prefix)

    def loss(self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates_BA: Tensor) -> Tensor:
        """Return -sum_j log p(answer token j), or the KL divergence, averaged over the rows."""
        logits_BJV = self.logits(lm, prompts, rows, gates_BA).float()
        target_BJ = prompts.batch.rows(rows).target_BJ
        if self.loss_kind == "cross_entropy":
            total = cross_entropy(logits_BJV.flatten(0, 1), target_BJ.flatten(), reduction="sum")
            return total / len(target_BJ)
        full_BJV = self._full(lm, prompts, rows)
        divergence_BJ = kl_div(
            logits_BJV.log_softmax(-1), full_BJV, log_target=True, reduction="none"
        ).sum(-1)
        return divergence_BJ.masked_fill(target_BJ == IGNORE, 0.0).sum(1).mean()

    def runs_branches(self, lm: FrozenLM) -> bool:
        """Whether gate sets can share a row: behind a prefix cache, on a model that allows it."""
        return self.positions == "last" and self.prefix_cache and supports_branches(lm)

    def branched_logits(
        self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates_BGA: Tensor
    ) -> Tensor:
        """Return logits_BGJV of some rows under the gates of G gate sets, as branches of one row.

        The prefix cache of a row serves all its branches; prompts that reach beyond a window of
        attention have a row per gate set.
        """
        index = as_row_index(rows, prompts.device)
        batch = prompts.batch.rows(index)
        prefix = None if prompts.prefix is None else prompts.prefix.rows(index)
        branches, answers = gates_BGA.shape[1], batch.target_BJ.shape[1]
        if not within_window(prefix, answers):
            index_S = repeated(prompts, rows, branches)
            logits_SJV = self.logits(lm, prompts, index_S, gates_BGA.flatten(0, 1))
            return logits_SJV.unflatten(0, (-1, branches))
        off = self._off(lm, prompts, index, batch)
        if answers > 1:
            off = off.tiled(branches)
        gates_BSA = gates_BGA.repeat_interleave(answers, dim=1)
        with gate_components(lm, self.components(lm), gates_BSA, off=off):
            return branch_logits(lm, batch, prefix, branches)

    def branched_losses(
        self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates_BGA: Tensor
    ) -> Tensor:
        """Return the loss of every gate set on the same rows, losses_G."""
        logits_BGJV = self.branched_logits(lm, prompts, rows, gates_BGA).float()
        target_BJ = prompts.batch.rows(rows).target_BJ
        target_BGJ = target_BJ[:, None].expand(-1, gates_BGA.shape[1], -1)
        if self.loss_kind == "cross_entropy":
            flat = cross_entropy(logits_BGJV.flatten(0, 2), target_BGJ.flatten(), reduction="none")
            return flat.view_as(target_BGJ).sum((0, 2)) / len(target_BJ)
        full_BGJV = self._full(lm, prompts, rows)[:, None].expand_as(logits_BGJV)
        divergence_BGJ = kl_div(
            logits_BGJV.log_softmax(-1), full_BGJV, log_target=True, reduction="none"
        ).sum(-1)
        return divergence_BGJ.masked_fill(target_BGJ == IGNORE, 0.0).sum(2).mean(0)

    @torch.no_grad()
    def _full(self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex) -> Tensor:
        """Return the log-probabilities of the untouched model, [B, J, V]."""
        return self.logits(lm, prompts, rows, None).float().log_softmax(-1)

    def _off(
        self, lm: FrozenLM, prompts: PromptSet, index: Tensor | slice, batch: TokenBatch
    ) -> OffValues:
        """Return the off-values of some rows, broadcastable to the gated outputs."""
        if self.off_value == "zero":
            return OffValues()
        if self.off_value in ESTIMATED:
            if self.means is None:
                raise HeadlocError("The mean off-values are missing: call prepare() first.")
            if self.positions == "last" and batch.target_BJ.shape[1] == 1:
                return self.means.at_last()
            columns = batch.predicting if self.positions == "last" else slice(None)
            return self.means.at(batch.role_BT[:, columns])
        if prompts.resampled is not None:
            return prompts.resampled.rows(index)
        return self._resample_everywhere(lm, prompts, index)

    @torch.no_grad()
    def _resample_everywhere(
        self, lm: FrozenLM, prompts: PromptSet, index: Tensor | slice
    ) -> OffValues:
        if prompts.counterfactual is None:
            raise HeadlocError("These prompts were made without counterfactuals for resampling.")
        with read_components(lm, mlps=self.mlps) as reading:
            lm.logits(prompts.counterfactual.rows(index))
        return OffValues(reading.z, reading.m or None)
