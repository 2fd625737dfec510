"""The learned localizer behind the interface of the methods it is compared with.

    warm start    attribution scores decide where the gates begin     (`localizer/warm_start.py`)
    gates         trained as by `headloc localize`, for fewer steps
    refinement    a floating search over sizes, by trial              (`localizer/floating.py`)

All of it stays within a budget: `budget` times what exact patching of every head costs on the same
search prompts, A + 1 passes a prompt.  The refinement gets its share as prompts a step, training
the rest as steps.

Shapes: A heads in flat order, G gate vectors, N prompts.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from torch import Tensor

from headloc.baselines.gradient import gate_gradients
from headloc.baselines.method import HeadRanking, Method, ranking_in, ranking_of
from headloc.baselines.problem import SearchProblem, part_of
from headloc.errors import HeadlocError
from headloc.gates import HeadGates, PenaltySparsity, SparsityControl, TopKGates
from headloc.localizer.floating import FloatingSearch, FloatingSettings, descent_cost
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.warm_start import warm_start
from headloc.objectives.prompts import Progress

_BACKWARD = 3
"""Passes of a training step per prompt: a forward and its backward."""

_FIRST_ROUNDS = 0.35
"""Share of the refinement's passes for gradients and the first round of every race."""

_LEAST = 2
"""Fewest prompts of a round: two have a spread."""


class Learned(Method):
    """Train gates, and refine what they say by trial.

    Args:
        gates: the relaxation; top-k when None.
        sparsity: the pressure towards few heads; a fixed penalty when None.
        optimizer: settings of Adam.
        batch_size: prompts of a training step.
        warm_start: how far attribution scores move the gates' start; 0 for none.
        warm_prompts: prompts of the attribution.
        refine: settings of the floating search, whose `prompts` the budget decides; None for none.
        refine_share: share of the budget that the search may use.
        budget: in units of exact patching of all heads on the search prompts.
    """

    name: ClassVar[str] = "learned"

    def __init__(
        self,
        gates: HeadGates | None = None,
        sparsity: SparsityControl | None = None,
        optimizer: OptimizerSettings | None = None,
        batch_size: int = 16,
        warm_start: float = 1.0,
        warm_prompts: int = 128,
        refine: FloatingSettings | None = None,
        refine_share: float = 0.75,
        budget: float = 1.0,
    ) -> None:
        for key, value in (("batch_size", batch_size), ("warm_prompts", warm_prompts)):
            if value < 1:
                raise HeadlocError(f"learned.{key}={value} must be at least 1.")
        if not budget > 0 or not 0 <= refine_share < 1:
            raise HeadlocError(
                f"learned.budget={budget} must be above 0 and learned.refine_share={refine_share} "
                "in [0, 1)."
            )
        self.gates, self.sparsity, self.optimizer = gates, sparsity, optimizer
        self.batch_size, self.warm_start, self.warm_prompts = batch_size, warm_start, warm_prompts
        self.refine, self.refine_share, self.budget = refine, refine_share, budget

    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Warm start, train, refine."""
        passes = self.budget * (problem.total + 1) * len(problem.search)
        start_A = self._attribution(problem)
        if self.warm_start:
            passes -= _BACKWARD * min(self.warm_prompts, len(problem.search))
        share = self.refine_share if self.refine is not None else 0.0
        steps = int((1 - share) * passes / (_BACKWARD * self.batch_size))
        score_A = self._train(problem, start_A, max(1, steps))
        if self.refine is None:
            return ranking_of(score_A)
        return self._refined(problem, score_A, share * passes, progress)

    def describe(self) -> dict[str, Any]:
        """Return the settings; gates and sparsity by their own."""
        from dataclasses import asdict

        gates, sparsity = self._parts()
        return {
            "method": self.name,
            "gates": {"kind": type(gates).__name__},
            "sparsity": {"kind": type(sparsity).__name__},
            "refine": None if self.refine is None else asdict(self.refine),
            **{key: getattr(self, key) for key in ("batch_size", "warm_start", "warm_prompts",
                                                   "refine_share", "budget")},
        }  # fmt: skip

    def _parts(self) -> tuple[HeadGates, SparsityControl]:
        return self.gates or TopKGates(), self.sparsity or PenaltySparsity()

    def _attribution(self, problem: SearchProblem) -> Tensor | None:
        """Return attribution scores at half-open gates, where most heads matter to some degree."""
        if not self.warm_start:
            return None
        prompts = problem.first(self.warm_prompts)
        half_A = 0.5 * problem.open_all()
        return gate_gradients(problem.objective, problem.lm, prompts, half_A).double().mean(0).cpu()

    def _train(self, problem: SearchProblem, start_A: Tensor | None, steps: int) -> Tensor:
        """Return the scores of the gates [A] after some steps."""
        from headloc.localizer.fitting import fit, make_module, make_trainer
        from headloc.localizer.module import HeadLocalizer
        from headloc.localizer.parts import Parts
        from headloc.localizer.prompt_sets import Prompts
        from headloc.localizer.selection import Kept
        from headloc.localizer.settings import DataSettings, VerdictSettings

        gates, sparsity = self._parts()
        parts = Parts(
            problem.lm, problem.task, problem.objective, gates, copy.deepcopy(sparsity), Kept(),
            DataSettings(train_prompts=len(problem.search), batch_size=self.batch_size),
            self.optimizer or OptimizerSettings(), VerdictSettings(),
            _quiet(steps, len(problem.search) // min(self.batch_size, len(problem.search))),
            problem.seed,
        )  # fmt: skip
        prompts = Prompts(problem.search, problem.selection, 1.0)
        trainer = make_trainer(parts, [])
        module = make_module(parts, prompts, problem.seed)
        if start_A is not None and isinstance(module, HeadLocalizer):
            warm_start(module.gates, start_A, self.warm_start)
        fit(parts, prompts, trainer, module)
        return module.scores().cpu()

    def _refined(
        self, problem: SearchProblem, score_A: Tensor, passes: float, progress: Progress | None
    ) -> HeadRanking:
        """Run the floating search with as many prompts a step as the passes allow."""
        from dataclasses import replace

        settings = self.refine or FloatingSettings()
        each = descent_cost(problem.total, settings)
        count = max(_LEAST, min(len(problem.search), int(_FIRST_ROUNDS * passes / each)))
        search = FloatingSearch(
            score_A,
            lambda gates_GA, rows: _worth(problem, gates_GA, rows),
            lambda gates_A, rows: _gradient(problem, gates_A, rows),
            len(problem.search),
            replace(settings, prompts=count),
            limit=int(passes),
        )
        sets = search.run(progress)
        ranking = ranking_in(search.order())
        return HeadRanking(ranking.order, ranking.scores, sets)


def _worth(problem: SearchProblem, gates_GA: Tensor, rows: slice) -> Tensor:
    """Return p(answer) of some prompts: a soft accuracy, whose mean no single prompt rules."""
    many = problem.scored(gates_GA, part_of(problem.search, rows))
    return many.log_probability_GN.exp()


def _gradient(problem: SearchProblem, gates_A: Tensor, rows: slice) -> Tensor:
    prompts = part_of(problem.search, rows)
    gradient_NA = gate_gradients(
        problem.objective, problem.lm, prompts, gates_A.to(prompts.device), probability=True
    )
    return gradient_NA.double().mean(0).cpu()


def _quiet(steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """Return trainer options of a training that writes and shows nothing."""
    return {
        "max_epochs": -1,
        "max_steps": steps,
        "accelerator": "auto",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
        "log_every_n_steps": max(1, steps_per_epoch),
    }
