"""The LightningModule of a bank: many gate sets trained at once on the same prompts.

Every gate set is a `HeadGates` module with its own penalty and its own seed; the noise of a step
follows from (its seed, step), as in `HeadLocalizer`.  Adam works elementwise, so one optimizer over
all gate sets trains each of them as if it were alone.

Shapes: B rows, G gate sets, A heads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from headloc.bank.running import KIND, BankRunner, rows_per_pass, rows_per_training_pass
from headloc.bank.settings import Member
from headloc.gates import HeadGates, PenaltySparsity
from headloc.lm.frozen import FrozenLM
from headloc.localizer.microbatch import step_loss
from headloc.localizer.module import OPEN, GateTraining, OptimizerSettings
from headloc.objectives import Objective, PromptSet
from headloc.randomness import torch_generator


class BankLocalizer(GateTraining):
    """Train a bank of gate sets over the heads of a frozen model.

    The logged figures are means over the bank.

    Args:
        lm: the frozen model.
        objective: the prepared intervention.
        gates: the relaxation; every gate set is a copy of it.
        members: penalty and seed of every gate set.
        train_prompts: prompts that the gates are fitted to.
        selection_prompts: other prompts, for validation.
        optimizer: settings of Adam.
        branched: whether gate sets run as branches of one row; found out when None.
    """

    def __init__(
        self,
        lm: FrozenLM,
        objective: Objective,
        gates: HeadGates,
        members: Sequence[Member],
        train_prompts: PromptSet,
        selection_prompts: PromptSet,
        optimizer: OptimizerSettings | None = None,
        branched: bool | None = None,
    ) -> None:
        super().__init__(lm, objective, train_prompts, selection_prompts, optimizer)
        self.members = tuple(members)
        self.runner = BankRunner(lm, objective, branched)
        self.gates = nn.ModuleList(copy.deepcopy(gates) for _ in members)
        self.sparsity = nn.ModuleList(PenaltySparsity(member.weight) for member in members)
        total = objective.components(lm).total
        for member, own in zip(self.members, self.gate_sets, strict=True):
            own.allocate(total, torch_generator(member.seed, "gates", "init"))

    @property
    def gate_sets(self) -> list[HeadGates]:
        """The gate sets, in the order of the members."""
        return list(self.gates)  # type: ignore[arg-type]

    @property
    def controls(self) -> list[PenaltySparsity]:
        """The penalty of every gate set."""
        return list(self.sparsity)  # type: ignore[arg-type]

    def values(self) -> Tensor:
        """Return the test-time gates of every gate set, [G, A]."""
        return torch.stack([own.values() for own in self.gate_sets])

    def scores(self) -> Tensor:
        """Return what every gate set ranks heads by, [G, A]."""
        return torch.stack([own.scores() for own in self.gate_sets])

    def training_step(self, rows_B: Tensor, batch_idx: int) -> Tensor:
        """Return the sum of the gate sets' losses on some rows of the training prompts."""
        gates_BGA = self._sample(len(rows_B))
        loss = partial(self.runner.losses, self.train_prompts)
        most = rows_per_training_pass(len(rows_B), len(self.members), self.lm.device)
        task_G = step_loss(loss, rows_B, gates_BGA, self.lm.passes, self.share, most)
        self.task_loss = task_G.detach()
        pairs = zip(self.controls, self.gate_sets, strict=True)
        term_G = torch.stack([control.term(own, self.progress) for control, own in pairs])
        if self._logs_now():
            self._log_step(task_G.mean(), term_G.mean(), gates_BGA.flatten(0, 1))
        return (task_G + term_G).sum()

    def validation_step(self, rows_B: Tensor, batch_idx: int) -> None:
        """Score selection prompts under the test-time gates of all gate sets."""
        values_GA = self.values()

        def update(own_B: Tensor) -> None:
            logits_BGJV = self.runner.logits(self.selection_prompts, own_B, values_GA)
            target_BJ = self.selection_prompts.batch.rows(own_B).target_BJ
            for own_BJV in logits_BGJV.unbind(1):
                self.validation_accuracy.update(own_BJV, target_BJ)

        self._validate(rows_B, update, KIND, rows_per_pass(len(values_GA)))

    def on_validation_epoch_end(self) -> None:
        """Log how many heads are open on average."""
        values_GA = self.values()
        open_G = (values_GA > OPEN).sum(1).float()
        self.log("gates/open_hard", open_G.mean(), prog_bar=True)
        self.log("gates/mean", values_GA.mean())

    def _sample(self, rows: int) -> Tensor:
        step = f"step-{self.global_step}"
        draws = [
            own.sample(rows, torch_generator(member.seed, "gates", step))
            for member, own in zip(self.members, self.gate_sets, strict=True)
        ]
        return torch.stack(draws, dim=1)
