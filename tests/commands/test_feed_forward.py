"""Commands on a run whose gates cover the feed-forward blocks."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from headloc.circuit import Circuit
from headloc.cli import main
from tests.commands.runs import SMALL, Headloc, quick

SMALL_EVALUATE = tuple(one for one in SMALL if "train" not in one and "selection" not in one)
APART = ("heads_open_mlps", "heads_only", "mlps_only", "no_mlps")


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the bundled model with feed-forward gates and a replicate."""
    folder = tmp_path_factory.mktemp("gated") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headloc"])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        assert main(quick(folder, "gates.mlps=true", "verdict.replicates=1")) == 0
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_tells_heads_and_blocks_apart(gated: Path) -> None:
    metrics = json.loads((gated / "metrics.json").read_text())
    circuit = Circuit.load(gated / "circuit")
    assert circuit.mlps is not None
    assert metrics["mlps/count"] == len(circuit.mlps)
    assert (metrics["mlps/total"], metrics["heads/total"]) == (6, 48)
    assert metrics["heads/count"] == len(circuit.heads)
    for prefix in ("", "held_out/"):
        for name in APART:
            key = f"{prefix}accuracy/{name}"
            assert metrics[f"{key}/low"] <= metrics[key] <= metrics[f"{key}/high"]
            assert metrics[f"{key}/n"] == 24
    assert "gates.mlps" not in (gated / "report.html").read_text()
    assert "mlps: true" in (gated / "config.yaml").read_text()


def test_the_tables_and_the_report_show_the_blocks(gated: Path) -> None:
    circuit = Circuit.load(gated / "circuit")
    rows = table(gated / "heads.csv")
    assert [row["head"] for row in rows[48:]] == ["MLP"] * 6
    kept = {int(row["layer"]) for row in rows[48:] if row["selected"] == "1"}
    assert kept == set(circuit.mlps or ())
    assert all(row["replicate_share"] in ("0", "1") for row in rows[48:])
    outcomes = table(gated / "outcomes.csv")
    metrics = json.loads((gated / "metrics.json").read_text())
    seen = [row for row in outcomes if row["split"] == "seen"]
    for name in APART:
        right = sum(row[f"correct_{name}"] == "1" for row in seen)
        assert right / len(seen) == pytest.approx(metrics[f"accuracy/{name}"])
    page = (gated / "report.html").read_text()
    assert f"{len(circuit.mlps or ())} of 6 feed-forward blocks" in page
    assert "its heads, all FFNs off" in page
    assert page.count("feed-forward block L") == 6
    assert (gated / "pictures" / "heads.svg").stat().st_size > 0


def test_it_is_evaluated_as_it_was_found(gated: Path, headloc: Headloc, tmp_path: Path) -> None:
    out = tmp_path / "again"
    result = headloc(
        "evaluate", f"circuit={gated / 'circuit'}", *SMALL_EVALUATE, f"output_dir={out}"
    )
    assert result.status == 0, result.err
    again = json.loads((out / "metrics.json").read_text())
    before = json.loads((gated / "metrics.json").read_text())
    for key in ("mlps/count", "mlps/total", "heads/count", *(f"accuracy/{n}" for n in APART)):
        assert again[key] == before[key], key
    assert "its heads, all FFNs off" in result.out


def test_showing_comparing_and_exporting(gated: Path, headloc: Headloc, tmp_path: Path) -> None:
    circuit = Circuit.load(gated / "circuit")
    names = " ".join(f"L{layer}MLP" for layer in circuit.mlps or ())
    shown = headloc("circuit", "show", gated / "circuit")
    assert shown.status == 0, shown.err
    assert f"of 6 feed-forward blocks: {names}" in shown.out
    compared = headloc("circuit", "diff", gated / "circuit", gated / "replicates" / "1")
    assert "of feed-forward blocks" in compared.out
    written = tmp_path / "heads.json"
    exported = headloc("circuit", "export", gated / "circuit", "format=heads", f"output={written}")
    assert "format=heads holds heads only" in exported.out
    assert len(json.loads(written.read_text())) == len(circuit.heads)


@pytest.mark.parametrize(
    "choices",
    [
        ("objective=function_vector", "objective.prompts_per_task=4", "gates=l1"),
        ("objective=patch", "objective.prompts_per_task=4", "gates=top_k"),
        ("sparsity=path", "sparsity.weights=[0.02,0.1]", "sparsity.seeds=2"),
        ("objective.off_value=resample", "sparsity=target", "sparsity.heads=8"),
        ("objective.positions=all", "verdict.greedy=false"),
    ],
    ids=lambda choices: choices[0],
)  # fmt: skip
def test_choices_run_with_it(choices: tuple[str, ...], headloc: Headloc, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = headloc(*quick(folder, "gates.mlps=true", *choices))
    assert result.status == 0, result.err
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(APART) <= {key.rpartition("/")[2] for key in metrics}
    assert Circuit.load(folder / "circuit").mlps is not None
    if choices[0] == "sparsity=path":
        assert [row["head"] for row in table(folder / "path" / "stability.csv")][48:] == ["MLP"] * 6
        assert Circuit.load(folder / "path" / "001").feed_forward is not None


def test_refining_and_layers_refuse_what_they_cannot_tell_apart(
    headloc: Headloc, tmp_path: Path
) -> None:
    folder = tmp_path / "fv"
    choices = ("objective=function_vector", "objective.prompts_per_task=4", "selection=top_n",
               "selection.heads=54", "gates.mlps=true")  # fmt: skip
    assert headloc(*quick(folder, *choices)).status == 0
    for command in ("refine", "layers"):
        given = f"circuit={folder / 'circuit'}"
        refused = headloc(command, given, f"output_dir={tmp_path / 'no'}")
        assert refused.status != 0
        assert "feed-forward blocks" in refused.err
        assert "gates.mlps=false" in refused.err
    assert not (tmp_path / "no" / "refinement.json").exists()


def test_mistakes_are_named(headloc: Headloc, tmp_path: Path) -> None:
    for wrong, message in (
        ("gates.mlps=2", "gates.mlps=2 should be true or false"),
        ("gates.mlp=true", "gates.mlps"),
    ):
        result = headloc(*quick(tmp_path / "out", wrong))
        assert result.status != 0
        assert message in result.err
