"""The verdict table on a planted model: every row against the intervention that it claims to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headloc.evaluation.scoring import score
from headloc.lm.stream import add_to_stream
from headloc.refinement.necessity import random_sets
from headloc.refinement.rows import Row, difference
from headloc.refinement.scorer import HeadSets
from headloc.refinement.significance import mcnemar_two_sided
from headloc.refinement.table import COMPARED, SplitTable, score_split
from tests.refinement import planted

SETS = HeadSets(
    selected=(1, 2, 5, 8, 11),
    significant=(2, 5, 8),
    main=(2, 5),
    doses={2: 4, 5: 7},
    aie=(0, 2, 5, 6, 8),
    aie_main=(5, 8),
)


@pytest.fixture(scope="module")
def table() -> SplitTable:
    return score_split(planted.scorer(), planted.contexts(), SETS)


def mask(*heads: int) -> torch.Tensor:
    gates_A = torch.zeros(12)
    gates_A[list(heads)] = 1.0
    return gates_A


def test_unit_vectors_are_scored_as_the_objective_scores_them(table: SplitTable) -> None:
    lm, prompts = planted.scorer().lm, planted.contexts().zero_shot
    for key, heads in (
        ("zero_shot", ()),
        ("selected", SETS.selected),
        ("significant", SETS.significant),
        ("main_alone", SETS.main),
        ("aie", SETS.aie or ()),
        ("aie_main", SETS.aie_main or ()),
    ):
        expected = score(planted.objective(), lm, prompts, mask(*heads)).correct
        np.testing.assert_array_equal(table.row(key).correct_RN[0], expected)
        assert table.row(key).heads in (len(heads), None)


def test_ablations_are_scored_as_the_in_place_objective_scores_them(table: SplitTable) -> None:
    lm, prompts = planted.scorer().lm, planted.contexts().few_shot
    for key, heads in (("main", SETS.main), ("selected", SETS.selected)):
        expected = score(planted.ablation(), lm, prompts, 1 - mask(*heads)).correct
        np.testing.assert_array_equal(table.row(f"without_{key}").correct_RN[0], expected)
    # The right answer is what the untouched model says.
    assert table.row("clean").correct_RN.all()
    assert not table.row("without_selected").correct_RN.all()
    # With all live heads gone, every other set of five is made of dead ones: nothing changes.
    assert table.row("without_random_selected").correct_RN.all()


@torch.no_grad()
def test_vectors_are_added_to_shuffled_prompts_at_the_last_token(table: SplitTable) -> None:
    scorer, prompts = planted.scorer(), planted.contexts().shuffled
    assert prompts is not None
    assert prompts.task_rows is not None
    batch = prompts.batch
    at = slice(batch.prompt_columns - 1, batch.prompt_columns)
    for key, heads in (
        ("shuffled", ()),
        ("shuffled_selected", SETS.selected),
        ("shuffled_aie", SETS.aie or ()),
    ):
        vector_BD = planted.objective().vectors(mask(*heads), prompts.task_rows)
        with add_to_stream(scorer.lm, 1, vector_BD, columns=at):
            said = scorer.lm.logits(batch).argmax(-1)
        expected = (said == batch.target_BJ).all(1).numpy()
        np.testing.assert_array_equal(table.row(key).correct_RN[0], expected)
    for shuffled, plain in zip(prompts.examples, planted.contexts().few_shot.examples, strict=True):
        assert (shuffled.query, shuffled.answer) == (plain.query, plain.answer)
        labels = [pair.output for pair in plain.demonstrations]
        assert [pair.output for pair in shuffled.demonstrations] == labels[::-1]


def test_main_heads_and_scaled_heads_leave_the_others_at_their_mean(table: SplitTable) -> None:
    scorer, prompts = planted.scorer(), planted.contexts().zero_shot
    assert prompts.task_rows is not None
    means = scorer.vectors.mean_AD
    rest = means[[1, 8, 11]].sum(0)
    own_KAD = scorer.vectors.own_KAD
    for key, vector_KD in (
        ("main", own_KAD[:, 2] + own_KAD[:, 5] + rest),
        ("head/L0H2", 4 * own_KAD[:, 2] + means[5] + rest),
        ("head/L1H1", 7 * own_KAD[:, 5] + means[2] + rest),
    ):
        vector_BD = vector_KD[prompts.task_rows]
        logits = scorer.insertion.logits(scorer.lm, prompts, slice(None), vector_BD)
        expected = (logits.argmax(-1) == prompts.batch.target_BJ).all(1).numpy()
        np.testing.assert_array_equal(table.row(key).correct_RN[0], expected)


def test_random_controls_are_as_many_sets_of_the_same_size(table: SplitTable) -> None:
    for key, size in (("random", 5), ("random_main", 2), ("without_random_main", 2)):
        row = table.row(key)
        assert row.correct_RN.shape == (3, 12)
        assert row.heads == size
        low, high = row.spread or (0.0, 0.0)
        assert low <= row.accuracy(0).value <= high
    assert "other selected" in table.row("without_random_main").label
    assert "others" in table.row("without_random_selected").label
    drawn = random_sets(range(12), 5, 6, 0, "x")
    assert all(len(set(one)) == 5 for one in drawn)
    assert drawn == random_sets(range(12), 5, 6, 0, "x") != random_sets(range(12), 5, 6, 0, "y")


def test_learned_heads_are_compared_with_aie_prompt_by_prompt(table: SplitTable) -> None:
    assert [(one.first, one.second) for one in table.differences] == list(COMPARED)
    first = Row("a", "a", "zero_shot", np.array([[1, 1, 1, 0, 0, 1]], dtype=bool))
    second = Row("b", "b", "zero_shot", np.array([[0, 1, 0, 1, 0, 0]], dtype=bool))
    found = difference(first, second, seed=0)
    assert (found.first_only, found.second_only) == (3, 1)
    assert found.estimate.value == pytest.approx(2 / 6)
    assert found.estimate.low < 2 / 6 < found.estimate.high
    assert found.p == mcnemar_two_sided(3, 1) == 10 / 16


def test_without_main_heads_and_without_aie_their_rows_are_left_out() -> None:
    sets = HeadSets((1, 2), (), (), {}, None, None)
    table = score_split(planted.scorer(), planted.contexts(), sets)
    keys = {row.key for row in table.rows}
    assert {"clean", "zero_shot", "selected", "random", "residual", "shuffled"} <= keys
    assert not any(name in key for key in keys for name in ("main", "aie", "significant", "head/"))
    assert table.differences == ()
