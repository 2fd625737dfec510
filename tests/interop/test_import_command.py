"""`headloc circuit import`: from a file to a circuit that is shown, applied and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headloc import load_bundled
from headloc.circuit import Circuit
from headloc.cli import main
from headloc.heads import HeadId


def test_a_list_of_heads_becomes_a_circuit_of_the_bundled_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = load_bundled()
    every = [[head.layer, head.head] for head in lm.layout]
    file, folder = tmp_path / "heads.json", tmp_path / "circuit"
    file.write_text(json.dumps(every[4:]))
    words = ["circuit", "import", str(file), "format=heads", "model=bundled", f"output={folder}"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"circuit  {folder}" in out
    assert "None" not in out
    circuit = Circuit.load(folder)
    assert circuit.model["name"] == "headloc/bundled"
    assert len(circuit.heads) == lm.layout.total - 4
    card = (folder / "README.md").read_text()
    assert "imported from `heads.json` (`heads`)" in card
    assert "None" not in card
    with circuit.apply(lm.model):
        lm.model(torch.arange(3, 9)[None])
    assert main(["circuit", "show", str(folder)]) == 0
    evaluated = ["evaluate", f"circuit={folder}", "data.test_prompts=32", "verdict.random_sets=1",
                 "data.held_out_prompts=32", f"output_dir={tmp_path}/out"]  # fmt: skip
    assert main(evaluated) == 2
    assert "names no task" in capsys.readouterr().err
    assert main([*evaluated, "task=add_k"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["heads/count"] == lm.layout.total - 4


def test_a_circuit_stands_for_its_model_and_nothing_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text("[[0, 1], [1, 2]]")
    (tmp_path / "b.json").write_text("[[1, 3, 0.5], [0, 0, 0.25]]")
    first, second = tmp_path / "first", tmp_path / "second"
    begin = ["circuit", "import"]
    assert main([*begin, f"{tmp_path}/a.json", "format=heads", "model=bundled",
                 f"output={first}"]) == 0  # fmt: skip
    assert main([*begin, f"{tmp_path}/b.json", "format=function_vectors", f"model={first}", "top=1",
                 "off_value=mean", f"output={second}"]) == 0  # fmt: skip
    circuit = Circuit.load(second)
    assert circuit.heads == (HeadId(1, 3),)
    assert circuit.model == Circuit.load(first).model
    assert circuit.objective["off_value"] == "mean"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=heads", "model=bundled"], "output=DIR"),
        (["format=heds", "model=bundled", "output=x"], "Did you mean 'heads'"),
        (["format=heads", "model=bundled", "output=x", "tpo=3"], "Did you mean 'top'"),
        (["format=heads", "model=bundled", "output=x", "top=-1"], "whole number"),
        (["format=heads", "model=bundled", "output=x", "absolute=yes"], "true or false"),
        (["format=heads", "model=bundled", "output=x", "off_value=no"], "off_value"),
        (["format=heads", "model=bundled", "output=x"], "L99H0"),
        (["format=heads", "model=no/such/place", "output=x"], "no/such/place"),
        (["format=heads", "model=", "output=x"], "is empty"),
        (["format=mib", "model=bundled", "output=x"], "no object 'cfg'"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heads.json").write_text("[[99, 0]]")
    assert main(["circuit", "import", "heads.json", *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["heads.json"]
