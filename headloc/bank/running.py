"""Run many gate sets on the same prompts.

Where the objective and the model allow it the gate sets are branches of one row, and the prefix
cache is shared.  Otherwise every gate set has a pass of its own over the same rows; that is the
very computation of a single run, bit for bit, whatever else is in the bank, and needs no more
memory than one.

Shape legend: B rows, G gate sets, A heads in flat order, J predicting columns, V vocabulary, N
prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headloc.evaluation.metrics import answered_correctly
from headloc.lm.batch import RowIndex
from headloc.lm.finite import bad_logits, check_rows
from headloc.lm.frozen import FrozenLM
from headloc.lm.passes import in_passes
from headloc.localizer.microbatch import differentiated
from headloc.localizer.selection import as_gates
from headloc.objectives import Objective, PromptSet
from headloc.objectives.prompts import Progress, chunks

_LANES = 4096
"""Rows times branches of a pass that needs no gradient; bounds the logits that are held at once."""

_CPU_LANES = 1024
"""Rows times branches of a training pass on a processor: with more, the activations of a layer no
longer stay in its cache, and a step takes longer (by a fifth for 16 gate sets on 128 rows)."""

KIND = "several gate sets"
"""Passes of one kind need about the same memory per row (`headloc.lm.passes`)."""

_SETS = 32
"""Gate sets of a pass that needs no gradient."""


class BankRunner:
    """Runs gate sets side by side.

    Args:
        lm: the frozen model.
        objective: the prepared intervention.
        branched: whether to use branches; found out when None.
    """

    def __init__(self, lm: FrozenLM, objective: Objective, branched: bool | None = None) -> None:
        self.lm, self.objective = lm, objective
        self.branched = objective.runs_branches(lm) if branched is None else branched

    def losses(self, prompts: PromptSet, rows: RowIndex, gates_BGA: Tensor) -> Tensor:
        """Return the task loss of every gate set, losses_G, with gradient to the gates.

        Args:
            prompts: the prompts.
            rows: which of them.
            gates_BGA: the gates of every row and gate set, with gradient.
        """
        # A single gate set takes the plain pass, so that a bank of one is the plain run exactly.
        if self.branched and gates_BGA.shape[1] > 1:
            return self.objective.branched_losses(self.lm, prompts, rows, gates_BGA)
        return torch.stack([self._pass(prompts, rows, g_BA) for g_BA in gates_BGA.unbind(1)])

    @torch.no_grad()
    def logits(self, prompts: PromptSet, rows: RowIndex, gates_GA: Tensor) -> Tensor:
        """Return logits_BGJV of some rows under the fixed gates of every gate set."""
        if self.branched and len(gates_GA) > 1:
            rows_B = len(prompts.batch.rows(rows))
            gates_BGA = gates_GA.expand(rows_B, -1, -1)
            return self.objective.branched_logits(self.lm, prompts, rows, gates_BGA)
        alone = [self.objective.logits(self.lm, prompts, rows, g_A) for g_A in gates_GA]
        return torch.stack(alone, dim=1)

    @torch.no_grad()
    def accuracies(
        self, prompts: PromptSet, sets: Sequence[Sequence[int]], progress: Progress | None = None
    ) -> list[float]:
        """Return the accuracy on all prompts with only the heads of each set open.

        Args:
            prompts: the prompts.
            sets: flat head indices.
            progress: called with (sets scored, in all).
        """
        total = self.objective.components(self.lm).total
        found: list[float] = []
        for part in chunks(len(sets), _SETS):
            gates_GA = torch.stack([as_gates(list(chosen), total) for chosen in sets[part]])
            found += self._correct(prompts, gates_GA.to(prompts.device)).tolist()
            if progress is not None:
                progress(part.stop, len(sets))
        return found

    def _correct(self, prompts: PromptSet, gates_GA: Tensor) -> Tensor:
        """Return the share of prompts that each gate set answers correctly, [G]."""
        correct_G = torch.zeros(len(gates_GA), dtype=torch.float64)
        bad_N = torch.zeros(len(prompts), dtype=torch.bool)

        def run(rows: slice) -> None:
            logits_BGJV = self.logits(prompts, rows, gates_GA)
            target_BJ = prompts.batch.rows(rows).target_BJ
            hits = [answered_correctly(own, target_BJ).sum() for own in logits_BGJV.unbind(1)]
            correct_G.add_(torch.stack(hits).cpu())
            bad_N[rows] = bad_logits(logits_BGJV.flatten(1, 2)).cpu()

        most = rows_per_pass(len(gates_GA))
        in_passes(self.lm.passes, KIND, len(prompts), run, most=most)
        check_rows(bad_N, self.lm, gated=True)
        return correct_G / len(prompts)

    def _pass(self, prompts: PromptSet, rows: RowIndex, gates_BA: Tensor) -> Tensor:
        """Return the loss of one gate set; its graph through the model is gone afterwards."""
        leaf_BA = gates_BA.detach().requires_grad_()
        loss = self.objective.loss(self.lm, prompts, rows, leaf_BA)
        (gradient_BA,) = torch.autograd.grad(loss, leaf_BA)
        return differentiated(gates_BA, loss.detach(), gradient_BA)


def rows_per_pass(gate_sets: int) -> int:
    """Return how many rows of so many gate sets run together where no gradient is needed."""
    return max(1, _LANES // gate_sets)


def rows_per_training_pass(rows: int, gate_sets: int, device: torch.device) -> int:
    """Return how many of the rows of a step, in so many gate sets, train together at most."""
    # One gate set takes the pass of a plain run, so that it stays that run bit for bit.
    if device.type != "cpu" or gate_sets == 1:
        return rows
    # As few passes as the limit allows, all of about the same size.
    passes = -(-rows * gate_sets // _CPU_LANES)
    return -(-rows // passes)
