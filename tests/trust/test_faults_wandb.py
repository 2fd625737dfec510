"""Weights & Biases that cannot be reached, dies or hangs costs its curves, never the run."""

from __future__ import annotations

import gc
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headloc.reporting import loggers
from headloc.reporting.loggers import RunLogger, bounded, open_logger
from headloc.reporting.tolerant import TolerantCsv, TolerantWandb
from headloc.reporting.wandb_run import log_result
from tests.commands.runs import Headloc, quick
from tests.reporting.without_account import without_account
from tests.trust.killing import differences
from tests.trust.poison import poison, services, warned

WANDB = {"kind": "wandb", "project": "headloc-tests", "name": None, "group": None, "tags": []}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_account(monkeypatch, tmp_path)


def test_a_service_that_is_killed_in_training_costs_its_curves_alone(
    headloc: Headloc, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "out"
    result = headloc(*quick(folder, "logger=wandb", poison("core")))
    assert result.status == 0
    assert differences(folder, finished) == []
    (warning,) = warned(caplog)
    assert "W&B has stopped working" in warning
    assert "its curves end there from step" in warning
    (offline,) = folder.glob("wandb/offline-run-*")
    assert f"W&B recorded a part of the run; upload it with: wandb sync {offline}" in result.err
    # Nothing of it is left to fail when Python ends.
    _reap()
    assert services() == []


def _reap() -> None:
    """Take the exit status of a service that was killed, which W&B does not ask for any more."""
    for found in gc.get_objects():
        # Not isinstance(), which wakes lazy objects of other libraries.
        if type(found) is subprocess.Popen:
            found.poll()


def test_a_server_that_is_not_there_is_recorded_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loggers, "_INIT_SECONDS", 1)
    # The port of the discard service, which nobody offers.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    logger = open_logger(WANDB, tmp_path, {})
    assert isinstance(logger.lightning, TolerantWandb)
    logger.lightning.log_metrics({"val/accuracy": 0.5}, step=0)
    logger.close()
    (warning,) = warned(caplog)
    assert "W&B cannot go online" in warning
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


class Hanging:
    """A run whose service does not answer."""

    offline = False

    def __init__(self, place: Path, answer: threading.Event) -> None:
        self.settings = SimpleNamespace(sync_dir=str(place))
        self.finish = lambda **_: answer.wait(60)


def test_an_upload_without_end_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(loggers, "_FINISH_SECONDS", 0.1)
    monkeypatch.setattr(loggers, "_GRACE_SECONDS", 0.1)
    answer, left = threading.Event(), []
    monkeypatch.setattr("wandb.teardown", lambda: left.append(1))
    try:
        RunLogger(False, Hanging(tmp_path / "run", answer)).close()
    finally:
        answer.set()
    assert "could not be finished (no answer within 0.2 s); its files are kept" in caplog.text
    assert f"wandb sync {tmp_path / 'run'}" in capfd.readouterr().err
    assert left == [1]


def test_a_logger_that_fails_is_told_once_and_not_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    class Broken:
        offline = True
        settings = SimpleNamespace(sync_dir=str(tmp_path))

        def log(self, *given: Any, **options: Any) -> None:
            asked.append(given)
            raise ConnectionResetError("Connection lost\nand more")

    run = Broken()
    inner = TolerantWandb(log_model=False)
    inner._experiment = run  # type: ignore[assignment]
    for step in range(3):
        inner.log_metrics({"x": 1.0}, step=step)
    inner.save()
    inner.finalize("success")
    assert len(asked) == 1
    assert caplog.text.count("W&B has stopped working (Connection lost)") == 1
    # The figures of the result are not tried either.
    log_result(RunLogger(inner, run), None, {}, tmp_path)  # type: ignore[arg-type]
    assert len(asked) == 1


def test_curves_whose_folder_is_gone_end_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = open_logger({"kind": "csv"}, tmp_path / "out", {})
    assert isinstance(logger.lightning, TolerantCsv)
    logger.lightning.log_metrics({"x": 1.0}, step=0)
    (tmp_path / "out" / "curves").rmdir()
    logger.lightning.save()
    logger.lightning.save()
    assert caplog.text.count("curves/metrics.csv has stopped working") == 1
    assert logger.lost


def test_curves_that_cannot_begin_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "curves").write_text("a file in the place of the folder")
    assert open_logger({"kind": "csv"}, tmp_path, {}).lightning is False
    assert "the run keeps no curves" in caplog.text


def test_what_is_bounded_comes_back() -> None:
    def fail() -> None:
        raise ValueError("first\nsecond")

    assert bounded(lambda: None, 5) is None
    assert bounded(fail, 5) == "first"
