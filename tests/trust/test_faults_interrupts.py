"""Ctrl-C, a request to terminate and memory that runs out leave a run that goes on."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headloc.commands import ending
from headloc.faults import fault
from tests.commands.runs import Headloc, Result, quick
from tests.trust.killing import differences
from tests.trust.poison import TRAINING, at_stage


def message(result: Result) -> str:
    """The one message that a command has ended with."""
    assert "Traceback" not in result.err
    found = [line for line in result.err.splitlines() if line.startswith("headloc: ")]
    assert len(found) == 1, result.err
    return found[0]


def interrupt(*_: Any, **__: Any) -> None:
    send(signal.SIGINT)


def terminate(*_: Any, **__: Any) -> None:
    send(signal.SIGTERM)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    # Python handles a signal at its next instruction, not before.
    time.sleep(0.01)


def no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def no_memory_of_the_host() -> None:
    raise MemoryError


STAGES: tuple[tuple[str, Callable[..., None], int, str], ...] = (
    ("mean head outputs", interrupt, 130, "Interrupted. No stage was finished yet. Go on"),
    ("prompts and prefixes", terminate, 143, "Terminated. Finished so far: means. Go on"),
    (TRAINING, no_memory, 2, "A single row does not fit into the memory of the device (training)"),
    (TRAINING, interrupt, 130, "Interrupted. Finished so far: means"),
    ("selecting heads", terminate, 143, "Terminated. The gates so far are in"),
    ("verdict on seen tasks", no_memory_of_the_host, 2, "(prefix)"),
    ("verdict on held-out tasks", interrupt, 130, "(finished: means, selection, verdict-seen)"),
    ("replicates", terminate, 143, "verdict-held_out"),
)
"""Stages in their order, what befalls the run there, its exit status, and what is told."""


def test_a_run_that_ends_early_again_and_again_ends_as_one_left_in_peace(
    headloc: Headloc, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, more = tmp_path / "out", []
    for stage, harm, status, told in STAGES:
        with monkeypatch.context() as patch:
            at_stage(patch, stage, harm, once=status != 2)
            result = headloc(*quick(folder, *more))
        assert (stage, result.status) == (stage, status)
        assert told in message(result)
        assert f"Go on: the same command with resume=true output_dir={folder}." in message(result)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        more = ["resume=true"]
    with monkeypatch.context() as patch:
        patch.setattr("headloc.reporting.report.write_report", terminate)
        result = headloc(*quick(folder, *more))
    assert (result.status, "replicate-1" in message(result)) == (143, True)
    # The circuit came before the report.
    assert (folder / "circuit" / "circuit.json").is_file()
    assert headloc(*quick(folder, *more)).status == 0
    assert differences(folder, finished) == []


def test_memory_that_is_short_for_a_moment_costs_nothing(
    headloc: Headloc, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    at_stage(monkeypatch, "mean head outputs", no_memory_of_the_host)
    assert headloc(*quick(tmp_path / "out", "trainer.max_epochs=1")).status == 0
    assert caplog.text.count("Out of memory with 24 rows at once (means)") == 1


OTHERS = {
    "compare": (["compare"], "headloc.compare.run.compare"),
    "refine": (["refine"], "headloc.circuit.Circuit.load"),
    "analyze": (["analyze", "analysis=towers", "logger=none"], "headloc.circuit.Circuit.load"),
    "evaluate": (["evaluate"], "headloc.circuit.Circuit.load"),
    "doctor": (["doctor"], "headloc.commands.doctor.build_lm"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_other_commands_end_with_a_sentence(
    case: str, headloc: Headloc, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, where = OTHERS[case]
    circuit = [f"circuit={finished / 'circuit'}"] if case not in ("compare", "doctor") else []
    monkeypatch.setattr(where, interrupt)
    result = headloc(*arguments, *circuit, f"output_dir={tmp_path / 'out'}")
    assert result.status == 130
    assert message(result) == (
        "headloc: Interrupted. Nothing was written. Start the same command again."
    )
    (tmp_path / "out" / "findings").mkdir(parents=True)
    result = headloc(*arguments, *circuit, f"output_dir={tmp_path / 'out'}")
    assert f"What was finished lies in {tmp_path / 'out'}. Start" in message(result)


def test_an_interrupted_sweep_goes_on_with_the_jobs_it_had_not_come_to(
    headloc: Headloc, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    sweep = quick(folder, "--multirun", "seed=0,5", "trainer.max_epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr("headloc.commands.localize._localize", interrupt)
        result = headloc(*sweep)
    assert result.status == 130
    assert "This was job 0 (" in message(result)
    assert "seed=0" in message(result)
    assert message(result).endswith(f"the same command with resume=true output_dir={folder}.")
    assert not (folder / "1").exists()
    assert headloc(*sweep, "resume=true").status == 0
    assert all((folder / job / "circuit" / "circuit.json").is_file() for job in "01")


def test_the_first_request_to_terminate_is_heard_and_the_rest_ignored() -> None:
    def twice() -> None:
        with ending.terminable():
            try:
                terminate()
            finally:
                # A second one must not interrupt what is being saved.
                terminate()

    with pytest.raises(ending.Terminated):
        twice()
    with ending.terminable():
        own = signal.getsignal(signal.SIGTERM)
        with ending.terminable():
            assert signal.getsignal(signal.SIGTERM) is own
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_memory_is_told_apart_from_other_errors() -> None:
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("MPS: out of memory"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "/data/x"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ):
        assert "Memory has run out" in str(fault(error))
    for other in (RuntimeError("shape"), ValueError("out of memory"), KeyError("x")):
        assert fault(other) is None


def test_memory_that_does_not_suffice_for_the_explanation_is_told(
    headloc: Headloc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headloc.cli._dispatch", lambda _: no_memory_of_the_host())
    monkeypatch.setattr("headloc.commands.errors.explain", lambda _: no_memory_of_the_host())
    result = headloc("localize")
    assert result.status == 2
    assert message(result).startswith("headloc: Memory has run out (MemoryError)")
