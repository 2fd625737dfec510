"""Two processes train what one trains: the same gates and figures, to rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headloc.circuit import Circuit
from tests.commands.runs import quick

ROOT = Path(__file__).parents[2]


def run(folder: Path, *more: str) -> dict[int, dict[str, Any]]:
    """Run a localization in processes of its own; return what they ended with, by number."""
    probe = f"+callbacks.probe={{_target_:tests.distributed.probe.Probe,folder:{folder}}}"
    # Neither the batches nor the last validation batch can be shared out evenly.
    odd = ("data.batch_size=15", "data.train_prompts=31", "data.selection_prompts=23")
    arguments = quick(folder, *odd, probe, "verdict.random_sets=1", *more)
    done = subprocess.run(
        [sys.executable, "-m", "headloc", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # One process speaks, and the others are not heard.
    assert done.stdout.count("faithfulness") == 1
    assert "Traceback" not in done.stderr
    return {
        int(path.stem.removeprefix("rank-")): json.loads(path.read_text())
        for path in folder.glob("rank-*.json")
    }


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-5)


CASES = {
    # Multipliers of a target, and a second training in the same processes.
    "target": ("sparsity=target", "sparsity.heads=8", "verdict.replicates=1"),
    # Proximal steps, and a bank.
    "path": ("gates=l1", "sparsity=path", "sparsity.weights=[0.001,0.01]", "sparsity.seeds=2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_find_what_one_finds(case: str, tmp_path: Path) -> None:
    alone = run(tmp_path / "one", *CASES[case])
    two = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")
    together = run(tmp_path / "two", *CASES[case], *two)
    assert set(alone) == {0}
    assert set(together) == {0, 1}
    assert [together[rank]["processes"] for rank in (0, 1)] == [2, 2]
    # The frozen model of each process is its own: nothing of it was sent.
    assert [together[rank]["marks"] for rank in (0, 1)] == [[[rank] * 3] * 2 for rank in (0, 1)]
    # Prompts, their tokens and the order of rows do not depend on the number of processes.
    assert together[0]["drawn"] == together[1]["drawn"] == alone[0]["drawn"]
    # Gates and multipliers are equal in both, bit for bit, and those of a single process.
    assert together[0]["state"] == together[1]["state"]
    assert together[0]["curves"] == together[1]["curves"]
    for name, value in alone[0]["state"].items():
        same(together[0]["state"][name], value)
    for name, figure in alone[0]["curves"].items():
        same(together[0]["curves"][name], figure)
    circuits = [Circuit.load(tmp_path / name / "circuit") for name in ("one", "two")]
    assert circuits[0].heads == circuits[1].heads
    same(circuits[0].gates.tolist(), circuits[1].gates.tolist())
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two")]
    for name, figure in metrics[0].items():
        if not name.startswith(("time/", "cost/")):
            assert metrics[1][name] == pytest.approx(figure, rel=1e-3, abs=1e-4), name
    assert metrics[1]["cost/train"] == pytest.approx(metrics[0]["cost/train"], rel=0.1)
    files = [{p.name for p in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[1] == files[0] | {"rank-1.json"}
