"""Search problems on tiny random models, and a worth that is known by construction."""

from __future__ import annotations

from functools import cache

import torch

from headloc.baselines.problem import SearchProblem
from headloc.objectives import InPlace, Objective
from headloc.randomness import stream
from tests.objectives.by_hand import add_k, digit_lm

TASK = add_k(held_out_k=[9])


@cache
def problem(
    family: str = "llama",
    off_value: str = "mean",
    dtype: torch.dtype = torch.float64,
    prompts: int = 6,
    positions: str = "last",
) -> SearchProblem:
    """A problem on a random model, with answers of one to three tokens."""
    return problem_of(InPlace(off_value, positions=positions), family, dtype, prompts)


def problem_of(
    objective: Objective, family: str, dtype: torch.dtype = torch.float64, prompts: int = 6
) -> SearchProblem:
    """The same for any objective."""
    lm = digit_lm(family, dtype)
    objective.prepare(lm, TASK, seed=1, prompts=8, progress=None)
    sets = [
        objective.prompt_set(
            lm, TASK, TASK.draw(prompts, stream(2, use), split="train"), seed=2, use=use
        )
        for use in ("search", "selection")
    ]
    return SearchProblem.of(lm, TASK, objective, sets[0], sets[1], seed=3)
