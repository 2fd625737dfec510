"""The whole refinement: what its parts are given, and which random streams they draw from."""

from __future__ import annotations

import pytest
import torch

from headloc.baselines.aie import indirect_effects
from headloc.errors import CircuitError
from headloc.objectives import FunctionVector, InPlace
from headloc.objectives.task_means import estimate_task_means
from headloc.randomness import stream
from headloc.refinement.run import refine
from headloc.refinement.settings import RefineSettings
from headloc.tasks.different import draw_different
from tests.localizer.planted import PLANTED, planted_lm
from tests.refinement import planted

SMALL = RefineSettings(
    doses=3, scan_prompts=30, prompts=20, aie_prompts=2, mean_prompts=10, random_sets=2
)


def test_relative_means_make_the_vectors_and_raw_means_make_the_indirect_effects() -> None:
    lm, task = planted_lm(), planted.task()
    objective = FunctionVector(layer=1, relative_to="zero_shot", prompts_per_task=5)
    objective.prepare(lm, task, seed=1)
    result = refine(lm, task, objective, PLANTED, settings=SMALL, seed=2)
    assert result.aie is not None
    raw = estimate_task_means(lm, task, task.train, prompts=5, seed=2)
    expected = indirect_effects(lm, task, raw, seed=2, prompts=2)
    torch.testing.assert_close(result.aie.effects_KA, expected.effects_KA)
    # Dead heads put out nothing, whatever their means are.
    alive = lm.layout.indices(PLANTED)
    dead = [index for index in range(lm.layout.total) if index not in alive]
    assert float(result.aie.effects_KA[:, dead].abs().max()) < 1e-6
    assert set(result.aie.top(3)) & set(alive)


def test_what_is_chosen_and_what_is_scored_are_drawn_apart() -> None:
    lm, task = planted_lm(), planted.task()
    result = refine(lm, task, planted.objective(), PLANTED, settings=SMALL, seed=2)
    assert set(result.tables) == {"seen", "held_out"}
    scored = result.tables["seen"].contexts
    assert [e.task for e in result.tables["held_out"].contexts.zero_shot.examples] == ["add_9"] * 20
    key = planted.objective().prompt_key
    rng = stream(2, "selection", "refine")
    chosen_on = set(map(key, draw_different(task, 30, rng, split="train", items="fit", key=key)))
    assert not chosen_on & set(map(key, scored.zero_shot.examples))
    rng = stream(2, "test", "train")
    expected = draw_different(
        task, 20, rng, split="train", items="score", key=key, without=chosen_on
    )
    assert list(scored.zero_shot.examples) == list(scored.few_shot.examples) == expected
    assert set(result.ledger.stages) == {
        "prompts",
        "dose_scan",
        "aie",
        "residual",
        "means",
        "table",
    }
    assert result.ledger.stages["dose_scan"].forward_tokens == result.cost.scan_tokens == 3 * 4 * 30


def test_another_objective_is_refused() -> None:
    with pytest.raises(CircuitError, match="in_place"):
        refine(planted_lm(), planted.task(), InPlace(), PLANTED, settings=SMALL)
