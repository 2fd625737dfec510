"""The learned ranking against AIE's by size: outcomes, tests, ties, and repeated prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from headloc.errors import HeadlocError
from headloc.evaluation.scoring import score
from headloc.refinement.run import refine
from headloc.refinement.settings import RefineSettings
from headloc.refinement.significance import benjamini_hochberg, mcnemar_two_sided
from headloc.refinement.size_chart import size_chart
from headloc.refinement.size_curve import (
    SizeCurve,
    curve_sizes,
    distinct,
    learned_order,
    score_sizes,
)
from headloc.tasks import Demonstration, Example
from tests.localizer.planted import PLANTED, planted_lm
from tests.refinement import planted

SMALL = RefineSettings(
    doses=2, scan_prompts=20, prompts=10, aie_prompts=2, mean_prompts=10, random_sets=0,
    size_prompts=40,
)  # fmt: skip


def test_every_size_is_scored_as_the_objective_scores_its_first_heads() -> None:
    scorer, prompts = planted.scorer(), planted.contexts().zero_shot
    scores_A = torch.randn(12, generator=torch.Generator().manual_seed(1))
    aie = [5, 0, 2, 8, 1, 3, 4, 6, 7, 9, 10, 11]
    curve = score_sizes(scorer, prompts, scores_A, aie)
    assert curve is not None
    assert curve.sizes == tuple(range(1, 12))
    learned = scores_A.argsort(descending=True).tolist()
    for s, size in enumerate(curve.sizes):
        for order, found_SN in ((learned, curve.learned_SN), (aie, curve.aie_SN)):
            gates_A = torch.zeros(12)
            gates_A[order[:size]] = 1.0
            expected = score(planted.objective(), scorer.lm, prompts, gates_A).correct
            np.testing.assert_array_equal(found_SN[s], expected)
    with pytest.raises(HeadlocError, match="12 heads cannot be compared with one of 11"):
        score_sizes(scorer, prompts, scores_A, aie[:-1])


def test_differences_are_tested_size_by_size_and_adjusted_over_the_sizes() -> None:
    learned_SN, aie_SN = np.zeros((3, 40), dtype=bool), np.zeros((3, 40), dtype=bool)
    learned_SN[0, :30], aie_SN[0, 18:33] = True, True  # 18 only learned, 3 only AIE
    learned_SN[1, :10], aie_SN[1, 2:38] = True, True  # 2 and 28
    learned_SN[2, :10], aie_SN[2, 3:12] = True, True  # 3 and 2
    curve = SizeCurve.of((1, 2, 4), learned_SN, aie_SN, seed=0)
    changed = [(18, 3), (2, 28), (3, 2)]
    assert [(one.learned_only, one.aie_only) for one in curve.points] == changed
    p = [mcnemar_two_sided(*one) for one in changed]
    assert [one.p for one in curve.points] == p
    assert [one.q for one in curve.points] == benjamini_hochberg(p)
    assert [one.verdict for one in curve.points] == ["better", "worse", ""]
    assert (curve.sizes_where("better"), curve.sizes_where("worse")) == ([1], [2])
    for point, ours_N, theirs_N in zip(curve.points, learned_SN, aie_SN, strict=True):
        assert point.learned.value == ours_N.mean()
        assert point.aie.value == theirs_N.mean()
        assert point.difference.value == pytest.approx(ours_N.mean() - theirs_N.mean())
        assert point.difference.low <= point.difference.value <= point.difference.high
        assert point.learned.n == curve.prompts == 40


def test_a_size_never_parts_heads_of_equal_scores() -> None:
    assert curve_sizes(torch.tensor([0.9, 0.4, 0.4, 0.1, 0.0, 0.0])) == [1, 3, 4]
    assert curve_sizes(torch.zeros(5)) == []
    assert learned_order(torch.tensor([0.4, 0.9, 0.4, 0.5])) == [1, 3, 0, 2]
    many = curve_sizes(torch.arange(1024.0))
    assert many[:17] == [*range(1, 17), 20]
    assert many[-4:] == [512, 640, 768, 896]
    assert len(many) < 45


def test_repeated_zero_shot_prompts_count_once() -> None:
    def example(task: str, query: str, shown: str) -> Example:
        return Example(task, (Demonstration(shown, "1"),), query, "9")

    first, again, other = example("a", "3", "4"), example("a", "3", "5"), example("b", "3", "4")
    assert distinct([first, again, other]) == [first, other]


def test_a_refinement_compares_rankings_on_prompts_of_their_own() -> None:
    lm, task = planted_lm(), planted.task()
    scores_A = torch.full((12,), -1.0)
    scores_A[lm.layout.indices(PLANTED)] = torch.tensor([3.0, 2.0, 1.0])
    found = refine(lm, task, planted.objective(), PLANTED, scores=scores_A, settings=SMALL, seed=2)
    assert set(found.sizes) == {"seen", "held_out"}
    seen = found.sizes["seen"]
    # All other heads share a score.
    assert seen.sizes == (1, 2, 3)
    assert 0 < seen.prompts <= 40
    assert found.ledger.stages["sizes"].forward_tokens > 0
    without = refine(
        lm, task, planted.objective(), PLANTED, scores=scores_A,
        settings=replace(SMALL, size_prompts=0), seed=2,
    )  # fmt: skip
    assert without.sizes == {}
    for name, table in found.tables.items():
        for row, same in zip(table.rows, without.tables[name].rows, strict=True):
            np.testing.assert_array_equal(row.correct_RN, same.correct_RN)


def test_the_chart_is_the_curve() -> None:
    learned_SN, aie_SN = np.zeros((3, 40), dtype=bool), np.zeros((3, 40), dtype=bool)
    learned_SN[0, :30] = learned_SN[1:] = aie_SN[1:, :20] = True
    chart = size_chart(SizeCurve.of((1, 2, 4), learned_SN, aie_SN, seed=0), "tasks trained on")
    frame = chart.frame
    assert [place.x for place in chart.learned_places] == [frame.left, 374.0, frame.right]
    assert [place.y for place in chart.aie_places] == [frame.y(0.0), frame.y(0.5), frame.y(0.5)]
    assert [one.verdict for one in chart.marked] == ["better"] * 3
    assert [tick.label for tick in chart.x] == ["1", "2", "4"]
    assert "learned, 1 heads: 0.750" in chart.told
