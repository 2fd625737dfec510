from __future__ import annotations

import csv
from pathlib import Path

import pytest

from headloc.reporting.figures import accuracy_rows
from headloc.reporting.outcomes import SCORED, example_rows, outcome_rows
from headloc.reporting.rows import head_rows, layers_of, ranked, replicate_rows
from headloc.reporting.tables import read_outcomes, write_heads, write_outcomes
from tests.reporting.made_up import HEADS, PROMPTS, made_up_lm, made_up_result


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_heads_table_holds_every_head_of_the_model(tmp_path: Path) -> None:
    result = made_up_result()
    write_heads(result, tmp_path / "heads.csv")
    rows = _read(tmp_path / "heads.csv")
    assert [(int(r["layer"]), int(r["head"])) for r in rows] == [
        (layer, head) for layer in range(2) for head in range(4)
    ]
    assert [float(r["gate"]) for r in rows] == pytest.approx(
        result.circuit.gates.tolist(), rel=1e-7
    )
    assert [float(r["score"]) for r in rows] == pytest.approx(result.circuit.scores.tolist())
    selected = {(int(r["layer"]), int(r["head"])) for r in rows if r["selected"] == "1"}
    assert selected == {(head.layer, head.head) for head in HEADS}
    shares = {(r["layer"], r["head"]): float(r["replicate_share"]) for r in rows}
    assert shares["0", "1"] == 1.0
    assert shares["1", "3"] == shares["0", "0"] == 0.5
    assert shares["0", "2"] == 0.0


def test_outcomes_table_equals_the_outcomes(tmp_path: Path) -> None:
    result = made_up_result()
    write_outcomes(result, tmp_path / "outcomes.csv", made_up_lm())
    rows = _read(tmp_path / "outcomes.csv")
    assert len(rows) == 2 * PROMPTS
    for split, verdict in result.verdicts.items():
        own = [row for row in rows if row["split"] == split]
        assert [row["prompt"] for row in own] == [e.text for e in verdict.prompts.encoded]
        assert [row["answer"] for row in own] == [e.answer for e in verdict.prompts.examples]
        for name in SCORED:
            outcome = verdict.outcomes[name][0]
            assert [row[f"correct_{name}"] == "1" for row in own] == outcome.correct.tolist()
            written = [float(row[f"log_probability_{name}"]) for row in own]
            assert written == pytest.approx(outcome.log_probability.tolist(), rel=1e-8)


def test_decoded_answers_are_those_of_the_model() -> None:
    for row in outcome_rows(made_up_result(), made_up_lm()):
        for name in SCORED:
            assert (row.predicted[name].strip() == row.answer) == row.correct[name]
            if not row.correct[name]:
                # An id without a token is still shown.
                assert row.predicted[name].startswith("<token ")


def test_outcomes_are_read_back(tmp_path: Path) -> None:
    rows = outcome_rows(made_up_result(), made_up_lm())
    write_outcomes(made_up_result(), tmp_path / "outcomes.csv", made_up_lm())
    for row, back in zip(rows, read_outcomes(tmp_path / "outcomes.csv"), strict=True):
        assert (back.split, back.index, back.task) == (row.split, row.index, row.task)
        assert (back.prompt, back.answer) == (row.prompt, row.answer)
        assert back.correct == row.correct
        assert back.predicted == {name: row.predicted[name] for name in ("full", "circuit")}


def test_examples_start_at_the_front_and_show_failures() -> None:
    rows = outcome_rows(made_up_result(), made_up_lm())
    picked = example_rows(rows, first=3, failures=1)
    assert [(row.split, row.index) for row in picked] == [
        ("seen", 0), ("seen", 1), ("seen", 2), ("seen", 11),
        ("held_out", 0), ("held_out", 1), ("held_out", 2), ("held_out", 11),
    ]  # fmt: skip
    assert not picked[3].correct["circuit"]


def test_accuracy_rows_follow_the_metrics() -> None:
    metrics = made_up_result().metrics
    rows = {row.condition: row for row in accuracy_rows(metrics)}
    circuit, random = rows["circuit"].figures[0], rows["random"].figures[1]
    assert circuit is not None
    assert random is not None
    assert circuit.value == metrics["accuracy/circuit"]
    assert (circuit.low, circuit.high, circuit.n) == (
        metrics["accuracy/circuit/low"], metrics["accuracy/circuit/high"], PROMPTS,
    )  # fmt: skip
    assert random.largest == metrics["held_out/accuracy/random/largest"]
    assert accuracy_rows({"accuracy/full": 1.0})[0].figures[1] is None
    assert accuracy_rows({}) == []


def test_ranking_replicates_and_odd_layouts() -> None:
    result = made_up_result()
    rows = head_rows(result.circuit, result.replicates)
    assert [str(row.head) for row in ranked(rows)] == ["L1H0", "L1H3", "L0H1"]
    assert [row.chosen for row in ranked(rows)] == ["2/2", "1/2", "2/2"]
    same, other = replicate_rows(result)
    assert (same.seed, same.jaccard) == (1007, 1.0)
    assert (other.shared, other.jaccard) == (2, 0.5)
    assert layers_of({"heads": [2, 3], "layer_indices": [1, 4]}) == [(1, 2), (4, 3)]
