"""`headloc layers`: what it finds in the bundled model, what it writes, what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.commands.runs import Headloc, contents

FAST = ("data.selection_prompts=64", "objective.prompts_per_task=20", "task.k_max=10")


def test_the_search_finds_early_layers_and_leaves_its_tables(
    headloc: Headloc, finished: Path, tmp_path: Path
) -> None:
    sites = "sites=[attention,layer_output]"
    more = (f"circuit={finished / 'circuit'}", "heads=each_layer", sites)
    result = headloc("layers", *FAST, *more, f"output_dir={tmp_path / 'out'}")
    assert result.status == 0, result.err
    rows = list(csv.DictReader((tmp_path / "out" / "layers.csv").read_text().splitlines()))
    data = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert len(rows) == len(data["scores"]) == 6 * 2 * (1 + 1 + 6)
    for row in rows:
        assert 0 <= float(row["low"]) <= float(row["accuracy"]) <= float(row["high"]) <= 1
        assert row["n"] == "64"
    best = data["recommended"]
    of_circuit = [row for row in rows if row["heads"] == "circuit"]
    assert best["accuracy"] == max(float(row["accuracy"]) for row in of_circuit)
    assert f"objective.layer={best['layer']} objective.site={best['site']}" in result.out
    everything = {
        (row["layer"], row["site"]): float(row["accuracy"])
        for row in rows
        if row["heads"] == "all heads"
    }
    # A vector that enters after the last layer has nothing left to act through but the output.
    assert max(everything.values()) > everything["5", "layer_output"] + 0.2
    assert data["zero_shot"]["value"] < 0.3 < data["few_shot"]["value"]
    for kind in ("png", "svg"):
        assert (tmp_path / "out" / "pictures" / f"layers.{kind}").stat().st_size > 5000


def test_some_layers_only_and_the_same_figures_again(headloc: Headloc, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        result = headloc("layers", *FAST, "layers=[3,1]", f"output_dir={tmp_path / folder}")
        assert result.status == 0, result.err
    one, two = (contents(tmp_path / folder) for folder in ("one", "two"))
    assert one["layers.csv"] == two["layers.csv"]
    assert one["pictures/layers.svg"] == two["pictures/layers.svg"]
    layers = [line.split(",")[0] for line in one["layers.csv"].decode().splitlines()[1:]]
    assert layers == ["1", "3"]


def test_another_task_family(headloc: Headloc, tmp_path: Path) -> None:
    task = ("task=subtract_k", "task.k_max=5", "task.shots=3", "objective.prompts_per_task=10")
    few = ("data.selection_prompts=16", "layers=[2]", f"output_dir={tmp_path / 'out'}")
    result = headloc("layers", *task, *few)
    assert result.status == 0, result.err


REFUSED = {
    "layer out of range": (["layers=[0,6]"], r"layers=\[0, 6\] is out of range.*0\.\.5"),
    "layer below zero": (["layers=-1"], "out of range"),
    "layer of the wrong type": (["layers=[first]"], "list of whole numbers"),
    "no layer": (["layers=[]"], "list of whole numbers"),
    "layer of the objective": (["objective.layer=2"], r"layers=\[2\]"),
    "another objective": (["objective=in_place"], "objective=function_vector"),
    "site": (["sites=[atention]"], "'attention'"),
    "no site": (["sites=[]"], "list of sites"),
    "heads": (["heads=each"], "'each_layer'"),
    "no shots": (["task.shots=0"], "needs few-shot prompts"),
    "too few items": (["task=pairs", "task.path=few.json"], "shots and a query need"),
    "template": (["circuit=circuit", "task.template=a_b"], "was found with the template"),
    "model": (["circuit=circuit", "model=local", "model.path=other"], "6 layers of 8 heads"),
    "weights": (["circuit=changed"], "has other weights"),
    "no circuit": (["circuit=nowhere"], "no circuit.json"),
    "empty zero-shot prompt": (
        ["task=pairs", "task.path=blank.json"], "'input' is empty"
    ),
    "template without text": (
        ['task.template={in_pre: "", in_sep: "", out_pre: "", out_sep: "#"}'],
        "empty in_sep and an empty out_pre",
    ),
    "held-out task trained on": (
        [
            "task=pairs",
            "task.path=bundled",
            "task.tasks=[capital,language]",
            "task.held_out=[capital]",
        ],
        "capital, also trained on",
    ),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, finished: Path, other_model: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "layers.json").write_text("mine")
    (tmp_path / "few.json").write_text('[{"input": "a", "output": "b"}]')
    (tmp_path / "blank.json").write_text('[{"input": " ", "output": "b"}]')
    shutil.copytree(finished / "circuit", tmp_path / "circuit")
    shutil.copytree(finished / "circuit", tmp_path / "changed")
    shutil.copytree(other_model, tmp_path / "other")
    file = tmp_path / "changed" / "circuit.json"
    data = json.loads(file.read_text())
    data["model"] |= {"name": "someone/else", "fingerprint": "0"}
    file.write_text(json.dumps(data))
    return tmp_path


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_are_told_and_nothing_is_overwritten(
    mistake: str, headloc: Headloc, place: Path
) -> None:
    import re

    arguments, message = REFUSED[mistake]
    before = contents(place / "out")
    result = headloc("layers", "data.selection_prompts=8", "output_dir=out", *arguments)
    assert result.status == 2
    assert result.out == ""
    told = result.err.partition("headloc: ")[2].replace("\n", " ")
    assert re.search(message, told), told
    assert contents(place / "out") == before
