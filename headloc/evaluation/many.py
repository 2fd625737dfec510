"""Score many gate vectors on the same prompts: subsets of heads, random controls, searches.

Where the objective and the model allow it the gate vectors are branches of one row, which share
the prompt's prefix cache; otherwise a (gate vector, prompt) pair is a row of its own.  Either way
many pairs share a pass, and each gets what it would get alone, to rounding.

Shape legend: G gate vectors, N prompts, A heads in flat order, B rows of a pass, J predicting
columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.evaluation.metrics import answer_log_probability, answered_correctly
from headloc.evaluation.scoring import Outcomes
from headloc.lm.finite import check_log_probabilities
from headloc.lm.frozen import FrozenLM
from headloc.lm.passes import in_passes
from headloc.objectives import Objective, PromptSet
from headloc.objectives.prompts import Progress

BRANCHES_PER_PASS = 32
"""Gate vectors that share a row; more only lengthen the mask, which grows with their square."""

PAIRS_PER_PASS = 2048
"""(gate vector, prompt) pairs of a pass, unless their logits would be too many."""

_LOGITS_PER_PASS = 1 << 26

_KIND = "many gate vectors"
"""Passes of one kind need about the same memory per row (`headloc.lm.passes`)."""


@dataclass(frozen=True, slots=True)
class ManyOutcomes:
    """What the model answered to N prompts under each of G gate vectors, on the processor.

    Attributes:
        correct_GN: bool, the whole answer was right.
        log_probability_GN: float64, log p(answer) in nats.
        predicted_GNJ: int64, the most likely token at each predicting column, where it was asked
            for.
    """

    correct_GN: Tensor
    log_probability_GN: Tensor
    predicted_GNJ: Tensor | None = None

    def __len__(self) -> int:
        return len(self.correct_GN)

    @property
    def accuracy_G(self) -> Tensor:
        """Share of prompts answered correctly, by gate vector, float64."""
        return self.correct_GN.double().mean(1)

    def outcomes(self, index: int) -> Outcomes:
        """Return the outcomes of one gate vector, as `score` gives them.

        Raises:
            HeadlocError: when the predicted tokens were not kept.
        """
        if self.predicted_GNJ is None:
            raise HeadlocError("The predicted tokens were not kept: use score_many(predicted=True)")
        return Outcomes(
            self.correct_GN[index].numpy(),
            self.log_probability_GN[index].numpy(),
            self.predicted_GNJ[index].numpy(),
        )


@torch.no_grad()
def score_many(
    objective: Objective,
    lm: FrozenLM,
    prompts: PromptSet,
    gates_GA: Tensor,
    *,
    rows_per_pass: int | None = None,
    branches_per_pass: int | None = None,
    branched: bool | None = None,
    predicted: bool = False,
    progress: Progress | None = None,
) -> ManyOutcomes:
    """Score all prompts under every one of G gate vectors.

    Args:
        objective: the prepared intervention.
        lm: the frozen model.
        prompts: N prompts that `objective.prompt_set` made.
        gates_GA: the gate vectors, on any device.
        rows_per_pass: prompts that run together; chosen by what memory takes when None.
        branches_per_pass: gate vectors that run together.
        branched: whether gate vectors are branches of one row; found out when None. A search that
            scores again and again finds it out once (`objective.runs_branches(lm)`).
        predicted: whether to keep the predicted tokens.
        progress: called with ((gate vector, prompt) pairs done, in all).

    Raises:
        HeadlocError: when the gates do not fit the model, or a size is not positive.
        NonFiniteError: when an answer has NaN or infinity for a log-probability.
    """
    if gates_GA.ndim != 2 or not len(gates_GA):
        raise HeadlocError(
            f"Gate vectors of shape {tuple(gates_GA.shape)} cannot be scored. Give at least one, "
            "[vectors, gates]."
        )
    branched = objective.runs_branches(lm) if branched is None else branched
    run = _branches if branched and len(gates_GA) > 1 else _rows
    g, n, answers = len(gates_GA), len(prompts), prompts.batch.target_BJ.shape[1]
    sets, rows = _sizes(g, n, pairs_that_fit(lm, answers), rows_per_pass, branches_per_pass)
    gates_GA = gates_GA.to(prompts.device)
    store = _Store.of(g, n, answers if predicted else 0, prompts.device)
    for first in range(0, g, sets):
        which = slice(first, min(first + sets, g))

        def one_pass(part: slice, which: slice = which) -> None:
            logits_GBJV = run(objective, lm, prompts, part, gates_GA[which])
            store.put(which, part, logits_GBJV, prompts.batch.target_BJ[part])
            if progress is not None:
                progress(n * which.start + part.stop * (which.stop - which.start), g * n)

        in_passes(lm.passes, _KIND, n, one_pass, most=rows)
    found = store.outcomes(predicted)
    check_log_probabilities(found.log_probability_GN, lm, gated=True)
    return found


@dataclass(frozen=True, slots=True)
class _Store:
    """Results on the model's device, so that an accelerator never waits between passes."""

    correct_GN: Tensor
    log_p_GN: Tensor
    predicted_GNJ: Tensor

    @classmethod
    def of(cls, g: int, n: int, answers: int, device: torch.device) -> _Store:
        return cls(
            torch.zeros(g, n, dtype=torch.bool, device=device),
            torch.zeros(g, n, device=device),
            torch.zeros(g, n, answers, dtype=torch.int64, device=device),
        )

    def put(self, which: slice, part: slice, logits_GBJV: Tensor, target_BJ: Tensor) -> None:
        """Score the logits of a pass."""
        shape = logits_GBJV.shape[:2]
        flat_SJV = logits_GBJV.flatten(0, 1)
        target_SJ = target_BJ.expand(shape[0], -1, -1).flatten(0, 1)
        self.correct_GN[which, part] = answered_correctly(flat_SJV, target_SJ).view(shape)
        self.log_p_GN[which, part] = answer_log_probability(flat_SJV, target_SJ).view(shape)
        if self.predicted_GNJ.shape[2]:
            self.predicted_GNJ[which, part] = logits_GBJV.argmax(-1)

    def outcomes(self, predicted: bool) -> ManyOutcomes:
        """Move the results to the processor."""
        kept = self.predicted_GNJ.cpu() if predicted else None
        return ManyOutcomes(self.correct_GN.cpu(), self.log_p_GN.cpu().double(), kept)


_Run = Callable[[Objective, FrozenLM, PromptSet, slice, Tensor], Tensor]
"""Runs some prompts under some gate vectors: logits_GBJV."""


def _branches(
    objective: Objective, lm: FrozenLM, prompts: PromptSet, part: slice, gates_GA: Tensor
) -> Tensor:
    gates_BGA = gates_GA.expand(part.stop - part.start, -1, -1)
    return objective.branched_logits(lm, prompts, part, gates_BGA).transpose(0, 1)


def _rows(
    objective: Objective, lm: FrozenLM, prompts: PromptSet, part: slice, gates_GA: Tensor
) -> Tensor:
    if len(gates_GA) == 1:
        return objective.logits(lm, prompts, part, gates_GA[0])[None]
    g, b = len(gates_GA), part.stop - part.start
    row_S = torch.arange(part.start, part.stop, device=prompts.device).repeat(g)
    logits_SJV = objective.logits(lm, prompts, row_S, gates_GA.repeat_interleave(b, dim=0))
    return logits_SJV.unflatten(0, (g, b))


def pairs_that_fit(lm: FrozenLM, answers: int, most: int = PAIRS_PER_PASS) -> int:
    """Return how many (edit, prompt) pairs run together, so that their logits stay in bounds.

    Args:
        lm: the frozen model.
        answers: predicting columns J of a pair.
        most: pairs of a pass when the vocabulary is small.
    """
    return max(1, min(most, _LOGITS_PER_PASS // (answers * lm.vocab_size)))


def _sizes(g: int, n: int, pairs: int, rows: int | None, sets: int | None) -> tuple[int, int]:
    """Return gate vectors and prompts of a pass."""
    for name, given in (("rows_per_pass", rows), ("branches_per_pass", sets)):
        if given is not None and given < 1:
            raise HeadlocError(f"{name} is {given}; give at least 1.")
    if sets is None:
        # As few passes as the limit allows, all of about the same size.
        passes = -(-g // min(BRANCHES_PER_PASS, pairs))
        sets = -(-g // passes)
    sets = min(g, sets)
    return sets, min(n, max(1, pairs // sets)) if rows is None else rows
