"""All checks, the cheap ones first; what cannot work without an earlier one is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from headloc.doctor.check import Check, Diagnosis, guarded
from headloc.doctor.estimate import check_memory, check_time
from headloc.doctor.heads import (
    check_ablation,
    check_branches,
    check_identity,
    check_layout,
    check_prefix,
)
from headloc.doctor.prompts import check_accuracy, check_tokenizer
from headloc.lm.frozen import FrozenLM
from headloc.stages import Stages, silent
from headloc.tasks import TaskFamily


def diagnose(
    lm: FrozenLM,
    task: TaskFamily,
    *,
    prompts: int = 64,
    trial_prompts: int = 64,
    seed: int = 0,
    stages: Stages = silent,
    tell: Callable[[Check], None] | None = None,
) -> Diagnosis:
    """Check whether a model can be localized on a task, and what it would cost here.

    Args:
        lm: the frozen model.
        task: the task family.
        prompts: prompts of the accuracy and of the tokenizer's check.
        trial_prompts: training prompts of the small localization behind the time; 0 leaves it out.
        seed: prompts follow from it.
        stages: shows the progress of the long steps.
        tell: called with every check as soon as it is made.
    """
    checks = []
    for check in _checks(lm, task, prompts, trial_prompts, seed, stages):
        checks.append(check)
        if tell is not None:
            tell(check)
    return Diagnosis(lm.source.to_dict(), task.describe(), tuple(checks))


def _checks(
    lm: FrozenLM, task: TaskFamily, prompts: int, trial_prompts: int, seed: int, stages: Stages
) -> Iterator[Check]:
    for name, ask in (
        ("heads", check_layout),
        ("gates of one", check_identity),
        ("ablation", check_ablation),
        ("prefix cache", check_prefix),
        ("branches", check_branches),
    ):
        yield guarded(name, partial(ask, lm))
    tokenizer = guarded("tokenizer", partial(check_tokenizer, lm, task, prompts=prompts, seed=seed))
    yield tokenizer
    if tokenizer.status == "failed":
        for name in ("task", "memory", "time"):
            yield Check(name, "skipped", "there are no scorable prompts")
        return
    with stages("few-shot accuracy"):
        able = guarded("task", partial(check_accuracy, lm, task, prompts=prompts, seed=seed))
    yield able
    yield guarded("memory", partial(check_memory, lm, task, seed=seed))
    if able.status == "failed":
        yield Check("time", "skipped", "the model answers none of the prompts")
        return
    if not trial_prompts:
        yield Check("time", "skipped", "trial_prompts=0")
        return
    with stages("a small localization") as progress:
        yield guarded(
            "time",
            partial(check_time, lm, task, prompts=trial_prompts, seed=seed, progress=progress),
        )
