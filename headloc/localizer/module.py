"""The LightningModule: a frozen language model, and gates over its heads that are trained.

    loss = task loss under sampled gates + sparsity term   (Hu et al. 2025; Louizos et al. 2018)

Only the gates and the state of the sparsity control enter a checkpoint: a few kilobytes, loaded
strictly.

Shapes: B rows, A heads, G gate sets, S rows of every gate set.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from headloc.errors import HeadlocError, NonFiniteError
from headloc.evaluation.metrics import AnswerAccuracy
from headloc.gates import HeadGates, SparsityControl, TargetSparsity
from headloc.lm.finite import blame
from headloc.lm.frozen import FrozenLM
from headloc.lm.passes import in_passes
from headloc.localizer.microbatch import Share, step_loss
from headloc.objectives import Objective, PromptSet
from headloc.randomness import torch_generator

log = logging.getLogger(__name__)

OPEN = 0.5
"""A head counts as open in hard counts when its test-time gate is above this."""


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Adam on the gates, its rate falling linearly; `lr=None` takes the rate that suits the gates.

    There is no weight decay: it would move gates that have no gradient.
    """

    lr: float | None = None
    beta1: float = 0.9
    beta2: float = 0.98
    final_lr: float = 0.1

    def __post_init__(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise HeadlocError(f"optimizer.lr={self.lr} must be above 0 (usual: 0.01 to 0.1).")
        if not 0 <= self.final_lr <= 1:
            raise HeadlocError(f"optimizer.final_lr={self.final_lr} must lie in [0, 1].")


class GateTraining(L.LightningModule, ABC):
    """What training gates has in common, for one gate set or a bank of them.

    A subclass makes its gate sets and controls, and says what a step is.

    Args:
        lm: the frozen model.
        objective: the prepared intervention.
        train_prompts: prompts that the gates are fitted to.
        selection_prompts: other prompts, for validation.
        optimizer: settings of Adam.
    """

    def __init__(
        self,
        lm: FrozenLM,
        objective: Objective,
        train_prompts: PromptSet,
        selection_prompts: PromptSet,
        optimizer: OptimizerSettings | None = None,
    ) -> None:
        super().__init__()
        self.lm, self.objective = lm, objective
        self.train_prompts, self.selection_prompts = train_prompts, selection_prompts
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.validation_accuracy = AnswerAccuracy()
        self.starved_steps = 0
        self.task_loss = torch.zeros(())
        """The task loss of the step that is being made, a scalar or one per gate set [G]."""
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_post_hook(_forgive_frozen)

    @property
    @abstractmethod
    def gate_sets(self) -> Sequence[HeadGates]:
        """The gate sets that are trained."""

    @property
    @abstractmethod
    def controls(self) -> Sequence[SparsityControl]:
        """The sparsity control of every gate set."""

    @abstractmethod
    def values(self) -> Tensor:
        """Return the test-time gates [A], or [G, A] of a bank."""

    @abstractmethod
    def scores(self) -> Tensor:
        """Return what heads are ranked by [A], or [G, A] of a bank."""

    @property
    def progress(self) -> float:
        """Share of the training steps done."""
        total = self.trainer.estimated_stepping_batches
        return min(1.0, self.global_step / max(1.0, float(total)))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a loss or gradient that is none; count steps in which a gate set has no gradient.

        Raises:
            NonFiniteError: before the step is made, so that the gates stay what they were.
        """
        norms = []
        for gates in self.gate_sets:
            own = [p.grad.norm() for p in gates.parameters() if p.grad is not None]
            norms.append(torch.stack(own).norm())
        norm_G = torch.stack(norms)
        self._check_step(norm_G)
        if not self._logs_now():
            return
        self.starved_steps += int((norm_G == 0).any())
        self.log("train/gradient_norm", norm_G.norm())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Shrink and clamp the gates, and let the sparsity controls adapt."""
        rate = float(self.optimizers().param_groups[0]["lr"])
        for gates, control in zip(self.gate_sets, self.controls, strict=True):
            gates.after_step(control.shrinkage(rate))
            control.after_step(gates, self.progress)

    def on_train_end(self) -> None:
        """Warn of a run whose result should not be trusted."""
        if self.starved_steps:
            log.warning(
                "In %d of the logged steps no gate had a gradient: the gates are saturated. "
                "Start lower (gates.init=2) or lower the learning rate (optimizer.lr).",
                self.starved_steps,
            )
        for control in self.controls:
            if isinstance(control, TargetSparsity) and control.ran_away():
                log.warning(
                    "The multipliers of the sparsity target ran away (%s): %s heads are out of "
                    "reach of this training. Train longer, lower sparsity.multiplier_lr or ask "
                    "for more.",
                    control.readings(),
                    control.target,
                )

    def configure_optimizers(self) -> dict[str, Any]:
        """Adam on the gates, with a linear decay of the rate over the run."""
        settings = self.optimizer_settings
        optimizer = torch.optim.Adam(
            [parameter for gates in self.gate_sets for parameter in gates.parameters()],
            lr=self.gate_sets[0].default_lr if settings.lr is None else settings.lr,
            betas=(settings.beta1, settings.beta2),
        )
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer,
            start_factor=1.0,
            end_factor=max(settings.final_lr, 1e-3),
            total_iters=int(self.trainer.estimated_stepping_batches),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    @property
    def share(self) -> Share:
        """The rows of a step that this process runs."""
        trainer = self._trainer
        return Share() if trainer is None else Share(trainer.global_rank, trainer.world_size)

    def _validate(
        self,
        rows_B: Tensor,
        update: Callable[[Tensor], None],
        kind: str = "evaluation",
        most: int | None = None,
    ) -> None:
        """Let `update` score the rows of this process, in passes of at most `most` rows."""
        own_B = rows_B[self.share.of(len(rows_B))]
        in_passes(self.lm.passes, kind, len(own_B), lambda part: update(own_B[part]), most=most)
        self.log("val/accuracy", self.validation_accuracy, prog_bar=True)

    def _check_step(self, norm_G: Tensor) -> None:
        """Refuse a task loss, or a norm of gradients, that is NaN or infinity.

        Both are asked at once, after the backward pass: every question makes an accelerator wait.

        Raises:
            NonFiniteError: with the step, and where the numbers may come from.
        """
        finite = torch.stack([figure.isfinite().all() for figure in (self.task_loss, norm_G)])
        if bool(finite.all()):
            return
        what = "gradient of the gates" if bool(finite[0]) else "task loss"
        parameters = [p for gates in self.gate_sets for p in gates.parameters()]
        own = not all(bool(p.isfinite().all()) for p in parameters)
        why = "The gates are NaN themselves: lower optimizer.lr." if own else blame(self.lm.model)
        raise NonFiniteError(
            f"The {what} is NaN or infinity at step {self.global_step + 1} of training (epoch "
            f"{self.current_epoch + 1}). {why}"
        )

    def _logs_now(self) -> bool:
        """Every few steps, and at the end of an epoch, so that no curve has an epoch missing."""
        every = max(1, int(self.trainer.log_every_n_steps))
        return self.global_step % every == 0 or self.trainer.is_last_batch

    def _log_step(self, task_loss: Tensor, term: Tensor, gates_SA: Tensor) -> None:
        """Log a step; `gates_SA` are all gates sampled in it, of every row and gate set."""
        expected = torch.stack([gates.expected_open().detach() for gates in self.gate_sets])
        figures = {
            "train/loss": task_loss.detach() + term.detach(),
            "train/task_loss": task_loss.detach(),
            "train/sparsity_term": term.detach(),
            "gates/open_expected": expected.mean(),
            "gates/open_sampled": (gates_SA.detach() > 0).sum(1).float().mean(),
        }
        # The task loss is that of the rows of this process.
        self.log_dict(figures, batch_size=len(gates_SA), sync_dist=True)
        self.log("loss", figures["train/task_loss"], prog_bar=True, logger=False, sync_dist=True)


class HeadLocalizer(GateTraining):
    """Train gates over the heads of a frozen model.

    Args:
        lm: the frozen model.
        objective: the prepared intervention.
        gates: the relaxation; its parameters are made here.
        sparsity: the pressure towards few heads.
        train_prompts: prompts that the gates are fitted to.
        selection_prompts: other prompts, for validation.
        optimizer: settings of Adam.
        seed: seed of the run; the noise of a step follows from (seed, step).
    """

    def __init__(
        self,
        lm: FrozenLM,
        objective: Objective,
        gates: HeadGates,
        sparsity: SparsityControl,
        train_prompts: PromptSet,
        selection_prompts: PromptSet,
        optimizer: OptimizerSettings | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(lm, objective, train_prompts, selection_prompts, optimizer)
        self.gates, self.sparsity, self.seed = gates, sparsity, seed
        total = objective.components(lm).total
        sparsity.begin(total)
        gates.allocate(total, torch_generator(seed, "gates", "init"))

    @property
    def gate_sets(self) -> list[HeadGates]:
        """The one gate set."""
        return [self.gates]

    @property
    def controls(self) -> list[SparsityControl]:
        """Its sparsity control."""
        return [self.sparsity]

    def values(self) -> Tensor:
        """Return the test-time gates [A]."""
        return self.gates.values()

    def scores(self) -> Tensor:
        """Return what heads are ranked by [A]."""
        return self.gates.scores()

    def training_step(self, rows_B: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of some rows of the training prompts under freshly sampled gates."""
        generator = torch_generator(self.seed, "gates", f"step-{self.global_step}")
        gates_BA = self.gates.sample(len(rows_B), generator)
        loss = partial(self.objective.loss, self.lm, self.train_prompts)
        task_loss = step_loss(loss, rows_B, gates_BA, self.lm.passes, self.share)
        self.task_loss = task_loss.detach()
        term = self.sparsity.term(self.gates, self.progress)
        if self._logs_now():
            self._log_step(task_loss, term, gates_BA)
            self.log_dict(self.sparsity.readings(), batch_size=len(gates_BA))
        return task_loss + term

    def validation_step(self, rows_B: Tensor, batch_idx: int) -> None:
        """Score selection prompts under the test-time gates."""
        values_A = self.gates.values()

        def update(own_B: Tensor) -> None:
            logits_BJV = self.objective.logits(self.lm, self.selection_prompts, own_B, values_A)
            target_BJ = self.selection_prompts.batch.rows(own_B).target_BJ
            self.validation_accuracy.update(logits_BJV, target_BJ)

        self._validate(rows_B, update)

    def on_validation_epoch_end(self) -> None:
        """Log how many heads are open."""
        values_A = self.gates.values()
        self.log("gates/open_hard", (values_A > OPEN).sum().float(), prog_bar=True)
        self.log("gates/mean", values_A.mean())


def _drop_frozen(
    module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}lm.")]:
        del state[key]


def _forgive_frozen(module: nn.Module, incompatible: Any) -> None:
    missing = incompatible.missing_keys
    missing[:] = [key for key in missing if ".lm." not in f".{key}"]
