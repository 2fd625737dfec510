"""A process that dies among several ends the run, or the sweep, with one message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headloc.circuit import Circuit
from headloc.commands.errors import explain
from tests.commands.runs import SMALL, Headloc, contents, quick
from tests.trust.poison import poison

ROOT = Path(__file__).parents[2]


def start(*arguments: str) -> tuple[int, str, list[str]]:
    """Run a command; return its status, its stderr and its messages."""
    done = subprocess.run(
        [sys.executable, "-m", "headloc", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("headloc: ")]
    return done.returncode, done.stderr, told


@pytest.mark.slow
def test_a_dead_process_of_two_is_told_and_the_run_goes_on_with_one(
    headloc: Headloc, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    two = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu",
           "verdict.replicates=0")  # fmt: skip
    status, err, told = start(*quick(folder, *two, poison("kill", rank=1)))
    assert (status, len(told)) == (2, 1), err
    assert told[0].startswith("headloc: Process 1 of 2 was killed (signal 9, most often because")
    assert f"resume=true output_dir={folder}" in told[0]
    assert (folder / "checkpoints" / "gates.ckpt").is_file()
    # The first epoch is not trained again: the checkpoint holds it.
    assert not (folder / "circuit").exists()


@pytest.mark.slow
def test_a_dead_worker_of_a_sweep_costs_no_other_job(headloc: Headloc, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder = tmp_path / "out"
    sweep = quick(folder, "--multirun", "seed=0,5", "verdict.replicates=0")
    first = folder / "0" / "report.html"
    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    status, err, told = start(*sweep, *joblib, poison("kill", seed=5, after=first))
    assert (status, len(told)) == (2, 1), err
    assert "A worker process died without a word" in told[0]
    assert f"resume=true output_dir={folder}" in told[0]
    before = contents(folder / "0")
    assert not (folder / "1" / "circuit").exists()
    assert headloc(*sweep, "resume=true").status == 0
    assert Circuit.load(folder / "1" / "circuit").heads
    name = "circuit/gates.safetensors"
    assert contents(folder / "0")[name] == before[name]


def test_a_sweep_names_the_job_that_failed_and_keeps_the_others(
    headloc: Headloc, tmp_path: Path
) -> None:
    folder, short = tmp_path / "out", ("trainer.max_epochs=1", "verdict.replicates=0")
    jobs = ("--multirun", "sparsity=target", "sparsity.heads=99,5")
    result = headloc(*quick(folder, *short, *jobs))
    assert result.status == 2
    assert result.err.strip().splitlines()[-3:-1] == [
        "headloc: 1 of 2 jobs failed; what the others found is kept:",
        "  " + ",".join(
            [f"debug=fast,logger=none,{','.join(SMALL)}", f"output_dir={folder}", *short,
             "sparsity=target", "sparsity.heads=99"]
        ),
    ]  # fmt: skip
    assert "sparsity.heads=99 is more" in result.err.strip().splitlines()[-1]
    assert Circuit.load(folder / "1" / "circuit").heads


def test_dead_workers_are_known_by_name() -> None:
    class TerminatedWorkerError(Exception):
        """As joblib names it."""

    assert "A worker process died" in str(explain(TerminatedWorkerError("killed")))
    lost = RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]")
    assert "Another process of this run is gone" in str(explain(lost))
    assert explain(RuntimeError("Connection")) is None
