"""`headloc localize sparsity=path` from the command line to its files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from headloc.circuit import Circuit
from headloc.cli import main
from tests.commands.runs import quick

PATH = ("sparsity=path", "sparsity.weights=[0.05,0.5]", "sparsity.seeds=2", "trainer.max_epochs=1")


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["headloc"])
    return quick(tmp_path / "out", *PATH)


def test_a_path_runs_end_to_end(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for text in ("penalty", "stable heads", "elbow", "2 penalties x 2 seeds"):
        assert text in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["path/members"] == 4
    circuit = Circuit.load(tmp_path / "out" / "circuit")
    assert circuit.selection["rule"] == "path"
    assert metrics["path/recommended/heads"] == len(circuit.heads) == metrics["heads/count"]
    for number in range(1, 5):
        Circuit.load(tmp_path / "out" / "path" / f"{number:03d}")
    assert "Sparsity path" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "replicates").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("sparsity.weights=[]", "sparsity.weights=[] must be a list"),
        ("sparsity.seeds=0", "sparsity.seeds=0"),
        ("sparsity.keep=2", "sparsity.keep=2"),
        ("gates=top_k", "TopKGates takes none"),
    ],
)
def test_mistakes_are_told(
    more: str, message: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, more]) != 0
    assert message in capsys.readouterr().err
