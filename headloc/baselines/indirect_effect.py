"""Activation patching: the average indirect effect of every head as a method.

The effects are those of `headloc.baselines.aie`: in label-shuffled few-shot prompts, one head at a
time is put at its task mean.  Its prompts are drawn from the stream "aie" of the same seed, because
shuffled prompts are its own; there are as many as search prompts, up to rounding to whole tasks.
The task means are part of its cost.

Shapes: A heads in flat order.
"""

from __future__ import annotations

from typing import ClassVar

from headloc.baselines.aie import indirect_effects
from headloc.baselines.attribution import checked_prompts
from headloc.baselines.method import HeadRanking, Method, ranking_of
from headloc.baselines.problem import SearchProblem
from headloc.errors import HeadlocError
from headloc.objectives.prompts import Progress
from headloc.objectives.task_means import estimate_task_means


class ActivationPatching(Method):
    """Rank heads by the signed average indirect effect.

    Args:
        prompts_per_mean: few-shot prompts that a task's mean head outputs are taken over.
        prompts_per_task: label-shuffled prompts per training task; None for as many as make up the
            number of search prompts.
    """

    name: ClassVar[str] = "activation_patching"
    uses_off_values: ClassVar[bool] = False

    def __init__(self, prompts_per_mean: int = 100, prompts_per_task: int | None = None) -> None:
        if prompts_per_mean < 1:
            raise HeadlocError(f"prompts_per_mean={prompts_per_mean} must be at least 1.")
        self.prompts_per_mean = prompts_per_mean
        self.prompts_per_task = checked_prompts(prompts_per_task)

    def prompts_used(self, problem: SearchProblem) -> int:
        """It has prompts of its own."""
        return 0

    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Estimate task means, then patch every head into label-shuffled prompts."""
        tasks = problem.task.train
        means = estimate_task_means(
            problem.lm, problem.task, tasks, prompts=self.prompts_per_mean, seed=problem.seed
        )
        each = self.prompts_per_task or max(1, len(problem.search) // len(tasks))
        effects = indirect_effects(
            problem.lm, problem.task, means, seed=problem.seed, prompts=each, progress=progress
        )
        return ranking_of(effects.effects_KA.mean(0))
