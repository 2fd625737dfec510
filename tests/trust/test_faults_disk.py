"""Disks that are full, folders that vanish and places that cannot be written to."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headloc.circuit import Circuit
from headloc.errors import IncompleteError
from headloc.extras import Extras
from headloc.faults import fault
from headloc.files import write_bytes, write_folder, write_text
from headloc.objectives.task_means import estimate_task_means
from headloc.run_note import FOLDER
from headloc.tasks import AddK
from tests.commands.runs import Headloc, quick
from tests.objectives.by_hand import number_lm
from tests.trust.killing import differences
from tests.trust.poison import at_stage, poison, warned

ROOT = Path(__file__).parents[2]


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.slow
def test_runs_on_failing_disks_go_on_to_the_same_result() -> None:
    call = [sys.executable, "-m", "tests.trust.faults", "--positions", "1", "--seed", "3"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^2 runs on failing disks, 1 of \d\d+ writes", done.stdout)


@pytest.mark.parametrize("call", ["os.fdopen", "os.replace", "tempfile.mkstemp", "os.chmod"])
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out" / "heads.csv"
    write_text(path, "earlier")
    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(OSError, match="No space left") as caught:
            write_text(path, "later")
    assert caught.value.filename == str(path)
    assert fault(caught.value) == (
        f"{path} cannot be written (No space left on device). Free some space there."
    )
    assert [path.name for path in path.parent.iterdir()] == ["heads.csv"]
    assert path.read_text() == "earlier"


def test_a_folder_that_cannot_take_its_place_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace, moves = tmp_path / "circuit", os.replace, []
    write_folder(folder, lambda place: write_text(place / "x", "earlier"))

    def third(source: Any, target: Any) -> None:
        # The content of the new folder, the earlier folder out of the way, the new one in.
        moves.append(target)
        full() if len(moves) == 3 else replace(source, target)

    monkeypatch.setattr(os, "replace", third)
    with pytest.raises(OSError, match="No space left"):
        write_folder(folder, lambda place: write_text(place / "x", "later"))
    assert [path.name for path in tmp_path.iterdir()] == ["circuit"]
    assert (folder / "x").read_text() == "earlier"


def test_a_file_whose_folder_is_removed_meanwhile_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chmod, removed = os.chmod, []

    def remove_once(path: Any, mode: int) -> None:
        if not removed:
            removed.append(path)
            shutil.rmtree(tmp_path / "out")
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", remove_once)
    write_bytes(tmp_path / "out" / "x", b"content")
    assert (tmp_path / "out" / "x").read_bytes() == b"content"


def test_a_run_whose_folder_is_removed_again_and_again_is_saved(
    headloc: Headloc, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    at_stage(monkeypatch, "verdict on seen tasks", lambda: shutil.rmtree(folder))
    assert headloc(*quick(folder, poison("remove"))).status == 0
    assert differences(folder, finished) == []
    # What comes after the last removal could be gone on from.
    assert {path.name for path in (folder / FOLDER).iterdir()} == {
        "run.json", "verdict-seen.safetensors", "verdict-held_out.safetensors",
        "replicate-1.safetensors",
    }  # fmt: skip


def test_a_report_that_cannot_be_written_costs_no_circuit(
    headloc: Headloc, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("headloc.reporting.report.write_report", full)
        patch.setattr("headloc.reporting.pictures.save_pictures", full)
        result = headloc(*quick(folder))
    assert result.status == 3
    last = result.err.strip().splitlines()[-1]
    assert last == (
        f"headloc: The result is saved in {folder}, but not with it: pictures, report.html. A file "
        "cannot be written (No space left on device). Free some space there. Then make them: the "
        f"same command with resume=true output_dir={folder}."
    )
    assert Circuit.load(folder / "circuit").heads == Circuit.load(finished / "circuit").heads
    assert "faithfulness" in result.out
    assert headloc(*quick(folder, "resume=true")).status == 0
    assert differences(folder, finished) == []


def test_only_faults_are_kept_for_the_end(tmp_path: Path) -> None:
    extras = Extras()
    extras.attempt("a", lambda: None)
    extras.check(tmp_path)
    with pytest.raises(KeyError):
        extras.attempt("b", lambda: {}["x"])
    extras.attempt("c", full)
    extras.attempt("d", full)
    with pytest.raises(IncompleteError, match=r"not with it: c, d\..*run the same command again"):
        extras.check(tmp_path)


def test_a_cache_that_cannot_be_written_to_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    lm = number_lm("llama")
    task = AddK(shots=1, k=[1, 2, 3], held_out_k=[3], x_min=1, x_max=20)
    options: dict[str, Any] = {"prompts": 4, "seed": 0}
    plain = estimate_task_means(lm, task, ["add_1", "add_2"], **options)
    found = estimate_task_means(
        lm, task, ["add_1", "add_2"], cache=tmp_path / "file" / "cache", **options
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.z, found.z, strict=True))
    (warning,) = warned(caplog)
    assert "objective.cache_dir=" in warning
    assert "Not a directory" in warning


@pytest.mark.slow
def test_a_machine_without_any_place_for_caches(finished: Path, tmp_path: Path) -> None:
    """Nothing below a file that is no folder can be written to, not even by root."""
    nowhere = "/dev/null/none"
    names = ("MPLCONFIGDIR", "HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
             "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR",
             "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_HOME")  # fmt: skip
    environment = {**os.environ, "HOME": nowhere, **dict.fromkeys(names, nowhere)}
    folder = tmp_path / "out"
    arguments = quick(folder, "logger=wandb", "objective=function_vector", "objective.layer=3",
                      "objective.prompts_per_task=4", f"objective.cache_dir={nowhere}",
                      "trainer.max_epochs=1", "verdict.replicates=0")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "headloc", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("objective.cache_dir=") == 1
    assert Circuit.load(folder / "circuit").heads
    assert (folder / "report.html").is_file()


def test_a_reader_who_has_left_is_no_error(
    headloc: Headloc, finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def closed(*_: Any, **__: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("headloc.reporting.console.Console.say", closed)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    result = headloc("circuit", "show", finished / "circuit")
    assert (result.status, result.err) == (141, "")


def test_a_log_on_a_full_disk_ends_no_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from headloc.reporting.console import Console

    monkeypatch.setattr("headloc.reporting.console._line", full)
    with caplog.at_level(logging.WARNING), Console().stage("verdict") as progress:
        progress(1, 2)


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.EDQUOT, "Free some space"), (errno.EROFS, "permissions"), (errno.EIO, "its disk")],
)
def test_errors_of_a_disk_are_told_apart(number: int, told: str) -> None:
    error = OSError(number, os.strerror(number), "/data/x")
    assert told in str(fault(error))
    assert os.strerror(number) in str(fault(error))
    # Also where the system does not say which file it was.
    assert told in str(fault(OSError(number, os.strerror(number))))
    assert fault(OSError(errno.ENOENT, os.strerror(errno.ENOENT))) is None
