"""The report of a refinement: it says what the tables hold, in a page that needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from headloc.circuit import Circuit
from headloc.heads import HeadId
from headloc.refinement.charts import NAMED, dose_chart, layer_chart
from headloc.refinement.report import SHOWN, refinement_context, write_refinement_report
from headloc.refinement.result import Refinement
from headloc.refinement.run import refine
from headloc.refinement.settings import RefineSettings
from headloc.refinement.significance import assess
from tests.localizer.planted import planted_lm
from tests.refinement import planted
from tests.reporting.made_up import HOSTILE
from tests.reporting.test_report import Page

SMALL = RefineSettings(
    doses=4,
    scan_prompts=30,
    prompts=16,
    aie_prompts=2,
    size_prompts=30,
    mean_prompts=10,
    random_sets=2,
)


@pytest.fixture(scope="module")
def result() -> Refinement:
    lm, task = planted_lm(), planted.task()
    found = refine(
        lm,
        task,
        planted.objective(),
        planted.HEADS,
        scores=torch.arange(12.0),
        settings=SMALL,
        seed=planted.SEED,
    )
    correct = np.zeros_like(found.scan.correct_HCN)
    # Two heads that carry much, one that carries a little, two that carry nothing.
    correct[0, 2, :28] = correct[1, 3, :20] = correct[2, 1, :7] = True
    correct[0, 4, :3] = True
    scan = replace(found.scan, correct_HCN=correct)
    return replace(found, scan=scan, significance=assess(scan, 0.9))


def circuit(name: str = "model") -> Circuit:
    lm, objective = planted_lm(), planted.objective()
    return Circuit(
        heads=planted.HEADS,
        gates=torch.ones(lm.layout.total),
        scores=torch.ones(lm.layout.total),
        model={**lm.source.to_dict(), "name": name},
        objective=objective.describe(),
        task={"family": f"add {HOSTILE}", "train": [HOSTILE]},
        selection={"rule": "elbow"},
        seed=1,
    )


@pytest.fixture(scope="module")
def html(result: Refinement, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_refinement_report(result, circuit(HOSTILE), f"seed: 7 # {HOSTILE}\n", path)
    return path.read_text(encoding="utf-8")


def words(html: str) -> str:
    return " ".join(" ".join(text.split()) for _, text in Page(html).text if text.strip())


def test_it_needs_nothing_else_and_runs_nothing(html: str) -> None:
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "img"})
    assert not re.search(r"https?://|@import|url\(|<script", html)
    assert "default-src 'none'" in html
    # Model, task, training tasks and configuration.
    assert words(html).count(HOSTILE) >= 4
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_every_row_of_the_verdict_is_there_with_its_interval(result: Refinement, html: str) -> None:
    text = words(html)
    for table in result.tables.values():
        for row in table.rows:
            assert row.label in text
            assert str(row.accuracy(result.seed)) in text
            if row.spread:
                assert f"sets: {row.spread[0]:.3f} to {row.spread[1]:.3f}" in text
        for one in table.differences:
            assert str(one.estimate) in text
    assert "n&nbsp;=&nbsp;16" in html
    assert text.count("exact two-sided McNemar test") == 1


def test_every_size_is_told_with_both_rankings(result: Refinement, html: str) -> None:
    text = words(html)
    assert set(result.sizes) == {"seen", "held_out"}
    for curve in result.sizes.values():
        assert f"n&nbsp;=&nbsp;{curve.prompts}</h3>" in html
        for point in curve.points:
            assert f"{point.size} {point.learned} {point.aie} {point.difference}" in text
            assert f"learned, {point.size} heads: {point.learned.value:.3f}" in html


def test_the_tests_of_every_head_are_told(result: Refinement, html: str) -> None:
    first, second, third, *rest = result.significance.effects
    assert result.significance.main == (first.head, second.head)
    shown = dict(re.findall(r'<th scope="row">(L\d+H\d+)</th>(.*?)</tr>', html))
    assert set(shown) == {str(head) for head in result.scan.heads}
    cells = {head: re.findall(r"<td[^>]*>(.*?)</td>", line) for head, line in shown.items()}
    assert cells[str(first.head)][:5] == ["main", "2", "0.933", "0.000", "0.933"]
    assert cells[str(first.head)][5] == "2: 28 / 0"
    # 4 doses, the one-sided test of 28 prompts put right, and five heads.
    assert float(cells[str(first.head)][6]) == pytest.approx(4 * 0.5**28, rel=0.05)
    assert float(cells[str(first.head)][7]) == pytest.approx(5 * 4 * 0.5**28, rel=0.05)
    assert cells[str(third.head)][0] == "-"
    assert all(cells[str(one.head)][7] == "1" for one in rest)


def test_the_curves_are_the_scan(result: Refinement) -> None:
    chart = dose_chart(result)
    kinds = [curve.kind for curve in chart.curves]
    assert sorted(kinds[:3]) == ["other"] * 3
    assert sorted(kinds[3:]) == ["d0", "d1"]
    by_kind = {curve.kind: curve for curve in chart.curves}
    best = result.significance.effect(result.significance.main[0])
    places = [tuple(map(float, point.split(","))) for point in by_kind["d0"].points.split()]
    frame = chart.frame
    accuracy = [(frame.bottom - y) / (frame.bottom - frame.top) for _, y in places]
    assert accuracy == pytest.approx([0, 0, 28 / 30, 0, 0.1], abs=1e-3)
    xs = [(x - frame.left) / (frame.right - frame.left) for x, _ in places]
    assert xs == pytest.approx([0, 0.25, 0.5, 0.75, 1.0], abs=1e-3)
    assert f"{best.head} rises from 0.000 to 0.933 at dose 2" in chart.told
    assert [one.name for one in chart.named] == [str(head) for head in result.significance.main]
    labels = sorted(one.label for one in chart.named)
    assert all(b - a >= 15.9 for a, b in pairwise(labels))


def test_more_main_heads_than_colours_stay_readable(result: Refinement) -> None:
    correct = np.zeros((9, 5, 30), dtype=bool)
    correct[:, 2] = True
    heads = tuple(planted_lm().layout.head(index) for index in range(9))
    scan = replace(result.scan, heads=heads, correct_HCN=correct)
    chart = dose_chart(replace(result, scan=scan, significance=assess(scan, 0.9)))
    assert len(chart.named) == NAMED
    assert sum(curve.kind == "main" for curve in chart.curves) == 9 - NAMED
    assert f"{9 - NAMED} further heads" in chart.told


def test_the_layer_curve_marks_the_layer_of_the_verdict(result: Refinement) -> None:
    chart = layer_chart(result)
    accuracies = result.residual_accuracies
    assert len(chart.places) == len(accuracies) == 3
    assert chart.best == chart.places[result.residual_layer]
    assert max(accuracies) == accuracies[result.residual_layer]
    for i, accuracy in enumerate(accuracies):
        assert f"layer {i}: accuracy {accuracy:.3f}" in chart.told


def test_costs_are_those_of_the_ledger(result: Refinement, html: str) -> None:
    text = words(html)
    assert f"ran {result.cost.scan_tokens:,} tokens" in text
    assert "5 x 5 x 30 x 1" in text
    for name, stage in result.ledger.stages.items():
        line = rf'{name.replace("_", " ")}</th><td class="number">{stage.forward_tokens:,}</td>'
        assert line in html


def test_without_rivals_and_main_heads_it_says_why(result: Refinement, tmp_path: Path) -> None:
    lm, task = planted_lm(), planted.task()
    settings = replace(SMALL, aie_prompts=0, random_sets=0, scan_prompts=10, prompts=8)
    found = refine(lm, task, planted.objective(), planted.HEADS[:1], settings=settings, seed=2)
    found = replace(
        found,
        tables={"seen": found.tables["seen"]},
        significance=assess(found.scan, 0.1),
    )
    write_refinement_report(found, circuit(), "", tmp_path / "report.html")
    text = words((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Learned ranking" not in text
    assert "No main heads: the few-shot accuracy is 0.100" in text
    assert "verage indirect effect" not in text.split("How to read")[0]
    assert "held-out" not in text.split("Particulars")[0]


def test_a_long_table_of_heads_is_cut_and_says_so(result: Refinement) -> None:
    heads, doses, prompts = SHOWN + 5, 3, 12
    correct = np.zeros((heads, doses, prompts), dtype=bool)
    correct[7, 1] = True
    layout = [HeadId(0, index) for index in range(heads)]
    scan = replace(result.scan, heads=tuple(layout), doses=(0, 1, 2), correct_HCN=correct)
    found = replace(result, scan=scan, significance=assess(scan, 0.9), aie=None)
    context = refinement_context(found)
    assert len(context["effects"]) == SHOWN
    assert context["left_out"] == 5
    assert context["effects"][0][0].head == layout[7]
