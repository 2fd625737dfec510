"""Published beside measured: agreement, and what is missing on either side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.references import Quantity, Reference, compare, refinement_metrics

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"


def quantity(name: str, low: float | None, high: float | None = None, key: str = "") -> Quantity:
    read = None if low is None else "seen"
    return Quantity(name, key or f"accuracy/{name}", low, low if high is None else high, "what",
                    "results", read)  # fmt: skip


def reference(*quantities: Quantity, published: bool = True) -> Reference:
    heads = (HeadId(1, 0), HeadId(0, 3), HeadId(9, 9)) if published else ()
    return Reference("a/b", "Someone", "1", LLAMA, published, quantities, heads)


METRICS = {
    "accuracy/full": 0.9, "accuracy/full/low": 0.85, "accuracy/full/high": 0.95,
    "accuracy/circuit": 0.5, "accuracy/circuit/low": 0.45, "accuracy/circuit/high": 0.55,
    "accuracy/full/n": 512, "heads/count": 30,
}  # fmt: skip


def test_a_figure_is_within_above_or_below() -> None:
    rows = compare(
        reference(
            quantity("full", 0.857, 0.87),
            quantity("circuit", 0.78),
            quantity("low", 0.3, key="accuracy/circuit"),
            quantity("edge", 0.40, 0.45, key="accuracy/circuit"),
            quantity("count", 33, key="heads/count"),
            quantity("same", 30, key="heads/count"),
        ),
        METRICS,
        model=LLAMA,
    ).rows
    notes = {row.quantity: row.note for row in rows}
    assert notes == {
        "full": "within the measured interval",
        "circuit": "0.28 below the published figure",
        "low": "0.2 above the published figure",
        "edge": "within the measured interval",
        "count": "3 below the published figure",
        "same": "as published",
    }
    assert [row.published for row in rows][:2] == ["0.857 to 0.87", "0.78"]
    assert (rows[0].measured, rows[0].low, rows[0].high) == (0.9, 0.85, 0.95)
    assert (rows[0].n, rows[4].n) == (512, None)
    assert rows[0].interval == "[0.850, 0.950]"
    assert rows[4].interval == ""
    assert rows[0].source == "results, seen"


def test_what_is_missing_on_either_side_is_marked() -> None:
    untold = Quantity("a metric of the future", None, 0.2, 0.2, "what", "results", "digest")
    found = compare(
        reference(quantity("full", None), quantity("aie", 0.4), untold), METRICS, model=LLAMA
    )
    published, measured, future = found.rows
    assert (published.published, published.measured) == ("missing", 0.9)
    assert published.note == "no published figure"
    for row in (measured, future):
        assert (row.measured, row.low, row.interval) == (None, None, "")
        assert row.note == "not measured by this run"
    assert (measured.published, future.published) == ("0.4", "0.2")


def test_what_only_a_refinement_measures_is_told_apart() -> None:
    refined = quantity("main", 0.7, key="refinement/main")
    rows = compare(
        reference(refined, quantity("aie", 0.4)), METRICS, model=LLAMA, unrefined="run reproduce"
    ).rows
    assert [row.note for row in rows] == ["run reproduce", "not measured by this run"]
    found = compare(
        reference(refined), {"refinement/main": 0.7}, model=LLAMA, unrefined="run reproduce"
    )
    assert found.rows[0].note == "as published"


def test_another_model_is_not_compared() -> None:
    ranking = [HeadId(0, 0), HeadId(1, 0)]
    found = compare(reference(quantity("full", 0.9)), METRICS, model="mine", ranking=ranking)
    assert not found.comparable
    assert found.heads is None
    assert found.rows[0].measured == 0.9
    assert found.rows[0].note == f"published for {LLAMA}"
    # A folder counts by its last name.
    assert compare(reference(), METRICS, model="models/Meta-Llama-3-8B-Instruct/").comparable


def test_nothing_is_applicable_where_nothing_is_published() -> None:
    found = compare(reference(quantity("full", None), published=False), METRICS, model=LLAMA)
    assert not found.comparable
    assert found.rows[0].published == "not applicable"
    assert found.rows[0].measured == 0.9
    assert found.rows[0].note == ""


def test_published_heads_are_looked_up_in_the_ranking() -> None:
    ranking = [HeadId(0, 1), HeadId(1, 0), HeadId(0, 0), HeadId(0, 3)]
    found = compare(reference(), METRICS, model=LLAMA, selected=ranking[:2], ranking=ranking).heads
    assert found is not None
    assert found.selected == (HeadId(1, 0),)
    assert found.ranks == (2, 4, None)
    assert found.expected_by_chance == 3 * 2 / 4


def test_a_refinement_gives_flat_metrics_of_the_tasks_trained_on(tmp_path: Path) -> None:
    (tmp_path / "refinement.json").write_text('{"significant": ["L0H1", "L1H1"], "main": ["L1H1"]}')
    row = {"key": "head/L1H1", "accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 9, "split": "seen"}
    rows = [row, {**row, "split": "held_out", "accuracy": 0.1}, {**row, "key": "aie", "n": 8}]
    (tmp_path / "table.json").write_text(json.dumps({"rows": rows}))
    found = refinement_metrics(tmp_path)
    assert found["refinement/heads/significant"] == 2
    assert found["refinement/heads/main"] == 1
    ends = [found[f"refinement/head/L1H1{end}"] for end in ("", "/low", "/high", "/n")]
    assert ends == [0.5, 0.4, 0.6, 9]
    assert found["refinement/aie/n"] == 8
    (tmp_path / "table.json").write_text('{"rows": [{"key": "aie"}]}')
    with pytest.raises(HeadlocError, match="Run `headloc refine` again"):
        refinement_metrics(tmp_path)
    with pytest.raises(HeadlocError, match="There is no refinement"):
        refinement_metrics(tmp_path / "nowhere")
