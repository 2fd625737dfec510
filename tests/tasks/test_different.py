"""Prompts that are tested, or given an interval, are all different."""

from __future__ import annotations

import numpy as np

from headloc.bundled import load_bundled
from headloc.evaluation.splits import judge_task
from headloc.objectives import FunctionVector, InPlace
from headloc.randomness import stream
from headloc.refinement.run import refine
from headloc.refinement.settings import RefineSettings
from headloc.refinement.significance import mcnemar
from headloc.stages import silent
from headloc.tasks import AddK
from headloc.tasks.different import draw_different

ZERO_SHOT, FEW_SHOT = FunctionVector().prompt_key, InPlace().prompt_key
SMALL = AddK(k=[1, 2, 3], held_out_k=[3], x_min=1, x_max=10)
"""A task with 20 zero-shot prompts for training, and 10 held out."""


def test_draws_come_as_before_with_repetitions_left_out_and_made_up_for() -> None:
    task = AddK(k=[1, 2], held_out_k=[], x_min=1, x_max=40, shots=2)
    plain = task.draw(60, stream(3, "test"), split="train")
    once = list({ZERO_SHOT(e): e for e in reversed(plain)}.values())[::-1]
    found = draw_different(task, 60, stream(3, "test"), split="train", items="all", key=ZERO_SHOT)
    assert len({ZERO_SHOT(e) for e in found}) == len(found) == 60
    assert len(once) < 60
    assert {ZERO_SHOT(e) for e in found[: len(once)]} == {ZERO_SHOT(e) for e in once}
    # Few-shot prompts differ already.
    few = draw_different(task, 60, stream(3, "test"), split="train", items="all", key=FEW_SHOT)
    assert few == plain


def test_a_draw_ends_where_a_task_has_no_more_prompts() -> None:
    found = draw_different(
        SMALL, 512, stream(3, "test"), split="train", items="score", key=ZERO_SHOT
    )
    assert len(found) == len({(e.task, e.query) for e in found}) == 20


def test_exact_tests_on_them_keep_their_level_where_nothing_has_an_effect() -> None:
    """Outcomes that are a coin's, one per prompt: repeated prompts are taken for evidence."""
    trials, rates = 120, {}
    for name in ("different", "repeated"):
        rejected = 0
        for trial in range(trials):
            rng = stream(trial, "null")
            if name == "different":
                drawn = draw_different(SMALL, 200, rng, split="train", items="score", key=ZERO_SHOT)
            else:
                drawn = SMALL.draw(200, rng, split="train", items="score")
            coins = np.random.default_rng(trial)
            turned = {key: int(coins.integers(-1, 2)) for key in sorted(map(ZERO_SHOT, drawn))}
            turns = [turned[ZERO_SHOT(example)] for example in drawn]
            rejected += mcnemar(turns.count(1), turns.count(-1)) <= 0.05
        rates[name] = rejected / trials
    assert rates["different"] <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    assert rates["repeated"] > 0.2


def vector() -> FunctionVector:
    objective = FunctionVector(layer=1, prompts_per_task=3)
    objective.prepare(load_bundled(), SMALL, seed=1)
    return objective


def test_the_verdict_on_a_vector_counts_a_zero_shot_prompt_once() -> None:
    verdicts = judge_task(
        vector(), load_bundled(), SMALL, [0, 1], seed=1, test_prompts=64, held_out_prompts=64,
        random_sets=0, stages=silent,
    )  # fmt: skip
    for name, count in (("seen", 20), ("held_out", 10)):
        examples = verdicts[name].prompts.examples
        assert len(set(map(ZERO_SHOT, examples))) == len(examples) == count
        assert verdicts[name].to_metrics()["accuracy/circuit/n"] == count


def test_a_refinement_scans_and_scores_a_zero_shot_prompt_once() -> None:
    lm = load_bundled()
    settings = RefineSettings(
        doses=1, scan_prompts=64, prompts=64, aie_prompts=0, mean_prompts=10, random_sets=0,
        size_prompts=0,
    )  # fmt: skip
    found = refine(lm, SMALL, vector(), list(lm.layout)[:2], settings=settings, seed=2)
    assert found.scan.correct_HCN.shape[2] == 20
    for name, count in (("seen", 20), ("held_out", 10)):
        contexts = found.tables[name].contexts
        examples = contexts.zero_shot.examples
        assert len(set(map(ZERO_SHOT, examples))) == len(examples) == count
        # Rows in other contexts are about the same queries, so that rows stay paired.
        assert contexts.few_shot.examples == examples
