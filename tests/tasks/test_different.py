"""Prompts that are tested, or given an interval, are all different."""

from __future__ import annotations

import numpy as np
import pytest

from headloc.bundled import load_bundled
from headloc.evaluation.splits import judge_task
from headloc.gates import L1Gates
from headloc.localizer.run import localize
from headloc.localizer.settings import DataSettings, VerdictSettings
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


def test_prompts_that_were_fitted_to_are_left_out_while_there_are_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fitted = draw_different(
        SMALL, 15, stream(3, "train"), split="train", items="fit", key=ZERO_SHOT
    )
    known = {ZERO_SHOT(example) for example in fitted}
    options = {"split": "train", "items": "score", "key": ZERO_SHOT}
    found = draw_different(SMALL, 64, stream(3, "test"), without=known, **options)  # type: ignore[arg-type]
    assert len(found) == 5
    assert not known & {ZERO_SHOT(example) for example in found}
    assert not caplog.records
    known |= {ZERO_SHOT(example) for example in found}
    again = draw_different(SMALL, 64, stream(3, "test"), without=known, **options)  # type: ignore[arg-type]
    assert len(again) == 20
    assert "not on fresh prompts" in caplog.text


def test_a_localization_scores_no_zero_shot_prompt_that_it_was_fitted_to() -> None:
    lm, task = load_bundled(), AddK(k=[1, 2, 3], held_out_k=[3], x_min=1, x_max=40)
    asked: list[set[object]] = []

    class Recorded(FunctionVector):
        def prompt_set(self, lm, task, examples, **options):  # type: ignore[no-untyped-def]
            asked.append(set(map(ZERO_SHOT, examples)))
            return super().prompt_set(lm, task, examples, **options)

    found = localize(
        lm, task, objective=Recorded(layer=2, prompts_per_task=3), gates=L1Gates(),
        data=DataSettings(
            train_prompts=40, selection_prompts=16, test_prompts=64, held_out_prompts=8
        ),
        verdict=VerdictSettings(random_sets=0), trainer={"max_epochs": 1, "accelerator": "cpu"},
        seed=1,
    )  # fmt: skip
    train, selection, test, _ = asked
    scored = set(map(ZERO_SHOT, found.verdicts["seen"].prompts.examples))
    assert scored == test
    # Drawn alike, the three would overlap: there are 80 prompts.
    assert len(test) == 80 - len(train | selection)
    assert not test & (train | selection)


def test_a_refinement_scores_no_zero_shot_prompt_that_doses_were_chosen_on() -> None:
    lm, task = load_bundled(), AddK(k=[1, 2, 3], held_out_k=[3], x_min=1, x_max=20)
    objective = FunctionVector(layer=1, prompts_per_task=3)
    objective.prepare(lm, task, seed=1)
    settings = RefineSettings(
        doses=1, scan_prompts=15, prompts=64, aie_prompts=0, mean_prompts=10, random_sets=0,
        size_prompts=0,
    )  # fmt: skip
    found = refine(lm, task, objective, list(lm.layout)[:2], settings=settings, seed=2)
    drawn = draw_different(
        task, 15, stream(2, "selection", "refine"), split="train", items="fit", key=ZERO_SHOT
    )
    scored = found.tables["seen"].contexts.zero_shot.examples
    assert len(scored) == 40 - 15
    assert not set(map(ZERO_SHOT, scored)) & set(map(ZERO_SHOT, drawn))
