"""`headloc refine` from a saved circuit to its files, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headloc.circuit import Circuit
from headloc.heads import HeadId
from tests.commands.conftest import headloc
from tests.commands.runs import Headloc, contents
from tests.localizer.planted import PLANTED, planted_lm
from tests.refinement import planted

__all__ = ["headloc"]

SMALL = (
    "doses=4",
    "scan_prompts=40",
    "prompts=24",
    "aie_prompts=3",
    "mean_prompts=16",
    "random_sets=2",
    "size_prompts=30",
)


def circuit(**changes: object) -> Circuit:
    lm, objective = planted_lm(), planted.objective()
    whole = Circuit(
        heads=tuple(sorted({*PLANTED, HeadId(0, 1), HeadId(2, 3)})),
        gates=torch.ones(lm.layout.total),
        scores=torch.rand(lm.layout.total),
        model=lm.source.to_dict(),
        objective=objective.describe(),
        task=planted.task().describe(),
        selection={"rule": "elbow"},
        seed=planted.SEED,
        tensors=objective.tensors(),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the planted model and its circuit; the task is known to the command."""
    lm = planted_lm()
    lm.model.save_pretrained(tmp_path / "model")
    assert lm.tokenizer is not None
    lm.tokenizer.save_pretrained(tmp_path / "model")
    circuit().save(tmp_path / "circuit")
    import headloc.commands.refine as command

    monkeypatch.setattr(command, "own_task", lambda circuit: planted.task())
    return tmp_path


MODEL = ("model=local", "model.path=model", "output_dir=out")


def test_refine_writes_heads_tables_outcomes_and_the_main_circuit(
    headloc: Headloc, place: Path
) -> None:
    result = headloc("refine", "circuit=circuit", *MODEL, *SMALL)
    assert result.status == 0, result.err
    out = place / "out"
    summary = json.loads((out / "refinement.json").read_text())
    assert summary["selected"] == ["L0H1", "L0H2", "L1H1", "L2H0", "L2H3"]
    # Dead heads add nothing in any dose, so that no test can be passed.
    by_head = {entry["head"]: entry for entry in summary["heads"]}
    assert by_head["L0H1"]["p"] == by_head["L2H3"]["p"] == 1.0
    assert set(summary["main"]) <= set(summary["significant"]) <= {str(h) for h in PLANTED}
    assert summary["clean_accuracy"] == 1.0
    stored = load_file(out / "scan.safetensors")
    scan = stored["correct"]
    assert stored["heads"].tolist() == [[0, 1], [0, 2], [1, 1], [2, 0], [2, 3]]
    assert scan.shape == (5, 5, 40)
    doses = table(out / "doses.csv")
    assert len(doses) == 25
    for line, curve in zip(doses, scan.flatten(0, 1), strict=True):
        assert float(line["accuracy"]) == pytest.approx(float(curve.float().mean()))
    rows = json.loads((out / "table.json").read_text())["rows"]
    outcomes = table(out / "outcomes.csv")
    assert {line["split"] for line in outcomes} == {"seen", "held_out"}
    for row in rows:
        scored = [line for line in outcomes if line["split"] == row["split"]]
        assert row["n"] == len(scored) == 24
        names = [key for key in scored[0] if re.fullmatch(re.escape(row["key"]) + r"(/\d\d)?", key)]
        assert len(names) == row["sets"]
        share = sum(int(line[name]) for line in scored for name in names) / len(names) / 24
        assert row["accuracy"] == pytest.approx(share)
        assert row["low"] <= row["accuracy"] <= row["high"]
    assert len(table(out / "table.csv")) == len(rows)
    ranking = table(out / "aie.csv")
    assert [int(line["rank"]) for line in ranking] == list(range(1, 13))
    sizes, curves = table(out / "sizes.csv"), load_file(out / "sizes.safetensors")
    for split in ("seen", "held_out"):
        lines = [line for line in sizes if line["split"] == split]
        assert [int(line["heads"]) for line in lines] == list(range(1, 12))
        for name in ("learned", "aie"):
            shares = curves[f"{split}/{name}"].float().mean(1).tolist()
            assert [float(line[name]) for line in lines] == pytest.approx(shares)
        assert summary["sizes"][split]["n"] == int(lines[0]["n"]) <= 30
        better = [int(line["heads"]) for line in lines if line["verdict"] == "better"]
        assert summary["sizes"][split]["better"] == better
    assert b"</svg>" in (out / "pictures" / "sizes.svg").read_bytes()
    assert (out / "pictures" / "doses.png").read_bytes().startswith(b"\x89PNG")
    assert b"</svg>" in (out / "pictures" / "doses.svg").read_bytes()
    assert (out / "main" / "circuit.json").is_file() == bool(summary["main"])
    if summary["main"]:
        assert [str(h) for h in Circuit.load(out / "main").heads] == summary["main"]
    report = (out / "report.html").read_text()
    assert all(str(entry["head"]) in report for entry in summary["heads"])
    assert "vector: 5 selected" in report
    assert "vector: 5 selected" in result.out
    assert "held-out tasks" in result.out
    assert "learned ranking against AIE, held-out tasks (n = " in result.out
    assert max(len(line) for line in result.out.splitlines() if "McNemar" not in line) <= 120


def test_the_same_seed_gives_the_same_files(headloc: Headloc, place: Path) -> None:
    for folder in ("a", "b"):
        arguments = (*MODEL[:2], f"output_dir={folder}", *SMALL, "aie_prompts=0")
        assert headloc("refine", "circuit=circuit", *arguments).status == 0
    first, second = contents(place / "a"), contents(place / "b")
    assert first.pop("config.yaml") != second.pop("config.yaml")
    # The report shows the configuration, which names the folder.
    own, other = (files["report.html"].decode() for files in (first, second))
    first["report.html"] = own.replace(f"{place}/a", f"{place}/b").encode()
    assert other.count(f"{place}/b") == 1
    assert first == second
    assert {"aie.csv", "sizes.csv", "sizes.safetensors", "pictures/sizes.png"}.isdisjoint(first)
    assert b"shuffled" not in first["table.csv"]


MISTAKES = {
    "in-place circuit": (["circuit=in_place"], "objective=in_place.*objective=function_vector"),
    "patch circuit": (["circuit=patch"], "objective=patch.*objective=function_vector"),
    "no heads": (["circuit=empty"], "holds no heads"),
    "no circuit": (["circuit=nowhere"], "no circuit.json"),
    "nothing": ([], "circuit is missing"),
    "no dose": (["circuit=circuit", "doses=0"], "doses=0"),
    "dose of the wrong type": (["circuit=circuit", "doses=abc"], "doses='abc'"),
    "no prompts": (["circuit=circuit", "prompts=0"], "prompts=0"),
    "seed": (["circuit=circuit", "seed=-1"], "seed=-1"),
    "unknown option": (["circuit=circuit", "dose=3"], "'doses'"),
    "another model": (["circuit=other_shape"], "3 layers of 4 heads"),
    "another model of the same shape": (["circuit=other_weights"], "other weights"),
    "another template": (["circuit=other_template"], "found with the template.*'Q:'"),
    "means of another model": (["circuit=other_means"], "stored means are of another model"),
    "means of another number of tasks": (["circuit=few_means"], "should have 3 rows"),
    "insertion layer out of range": (
        ["circuit=too_high"],
        r"objective.layer=3 is out of range.*0\.\.2",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_refine_refuses(mistake: str, headloc: Headloc, place: Path) -> None:
    arguments, message = MISTAKES[mistake]
    circuit(objective={"name": "in_place", "off_value": "mean"}).save(place / "in_place")
    circuit(objective={"name": "patch"}).save(place / "patch")
    circuit(heads=()).save(place / "empty")
    other = {**planted_lm().source.to_dict(), "heads": [4, 4, 4, 4], "layer_indices": [0, 1, 2, 3]}
    circuit(model=other, gates=torch.ones(16), scores=torch.ones(16)).save(place / "other_shape")
    unknown = {**planted_lm().source.to_dict(), "name": "someone/else", "fingerprint": "0" * 64}
    circuit(model=unknown).save(place / "other_weights")
    asked = planted.task().describe()
    template = {**asked["template"], "in_pre": "Q:"}
    circuit(task={**asked, "template": template}).save(place / "other_template")
    means = planted.objective().tensors()
    wide = {name: torch.cat([mean, mean], dim=-1) for name, mean in means.items()}
    circuit(tensors=wide).save(place / "other_means")
    circuit(tensors={name: mean[:2] for name, mean in means.items()}).save(place / "few_means")
    too_high = {**planted.objective().describe(), "layer": 3}
    circuit(objective=too_high).save(place / "too_high")
    (place / "out").mkdir()
    (place / "out" / "refinement.json").write_text("earlier")
    before = contents(place / "out")
    result = headloc("refine", *MODEL, *arguments)
    assert result.status == 2
    assert "Traceback" not in result.err
    told = result.err.partition("headloc: ")[2].replace("\n", " ")
    assert re.search(message, told), told
    assert contents(place / "out") == before


def test_labels_that_cannot_be_shuffled_are_told_before_any_work(
    headloc: Headloc, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import headloc.commands.refine as command
    from tests.localizer.planted import OwnAnswers

    one_shot = OwnAnswers(planted_lm(), k=[1, 5, 9], held_out_k=[9], shots=1)
    monkeypatch.setattr(command, "own_task", lambda circuit: one_shot)
    result = headloc("refine", "circuit=circuit", *MODEL, *SMALL)
    assert result.status == 2
    assert "aie_prompts=0" in result.err
    assert "dose scan ..." not in result.err
    assert contents(place / "out") == {}
