from __future__ import annotations

import builtins
import csv
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest

from headloc.errors import HeadlocError
from headloc.reporting.loggers import RunLogger, open_logger
from headloc.reporting.pictures import save_pictures
from headloc.reporting.tables import write_outcomes
from headloc.reporting.wandb_run import artifact_name, log_result
from tests.reporting.made_up import made_up_lm, made_up_result
from tests.reporting.wandb_file import read_run, values
from tests.reporting.without_account import without_account

SETTINGS = {"seed": 7, "task": {"shots": 5}, "yaml": "seed: 7\n", "logger": {"kind": "wandb"}}
WANDB = {"kind": "wandb", "project": "headloc-tests", "name": None, "group": None, "tags": ["t"]}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No account, and nobody at the keyboard."""
    without_account(monkeypatch, tmp_path)

    def ask(*args: Any) -> str:
        raise AssertionError("asked for a login")

    monkeypatch.setattr(builtins, "input", ask)
    monkeypatch.setattr("getpass.getpass", ask)


def test_offline_run_reads_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result, folder = made_up_result(), tmp_path / "run"
    logger = open_logger(WANDB, folder, SETTINGS)
    for step in range(3):
        logger.lightning.log_metrics({"val/accuracy": step / 2, "train/task_loss": 1.0}, step=step)
    write_outcomes(result, folder / "outcomes.csv", made_up_lm())
    save_pictures(result, folder)
    result.circuit.save(folder / "circuit")
    log_result(logger, result, SETTINGS, folder)
    logger.close()

    records = read_run(folder)
    config: dict[str, Any] = {}
    for record in [*(run.config for run in records["run"]), *records["config"]]:
        config |= values(record.update)
    assert config["seed"] == 7
    assert config["task"] == {"shots": 5}
    assert "torch" in config["versions"]
    assert config["model_source"]["model_type"] == "llama"
    assert "yaml" not in config

    history = [values(record.item) for record in records["history"]]
    curve = [row["val/accuracy"] for row in history if "val/accuracy" in row]
    assert curve == [0.0, 0.5, 1.0]
    assert [row["trainer/global_step"] for row in history if "val/accuracy" in row] == [0, 1, 2]
    media = next(row for row in history if "heads" in row)
    assert (media["heads"]["_type"], media["heads"]["nrows"]) == ("table-file", 8)
    assert media["heads_map"]["_type"] == "image-file"
    assert media["predictions"]["nrows"] > 0
    (offline,) = folder.glob("wandb/offline-run-*")
    for key in ("heads", "heads_map", "accuracies", "predictions"):
        assert (offline / "files" / media[key]["path"]).is_file()

    summary: dict[str, Any] = {}
    for record in records["summary"]:
        summary |= values(record.update)
    assert summary["heads/count"] == 3
    assert summary["held_out/accuracy/circuit"] == result.metrics["held_out/accuracy/circuit"]
    assert summary["heads/names"] == ["L0H1", "L1H0", "L1H3"]

    (artifact,) = [found for found in records["artifact"] if found.type == "circuit"]
    assert artifact.name == "circuit-labels"
    assert set(artifact.aliases) == {"latest", "seed-7"}
    assert {entry.path for entry in artifact.manifest.contents} >= {
        "circuit.json", "gates.safetensors"
    }  # fmt: skip

    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"W&B recorded the run offline; upload it with: wandb sync {offline}"
    ]


def test_online_without_a_key_goes_offline_and_never_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    logger = open_logger(WANDB, tmp_path / "run", SETTINGS)
    logger.close()
    assert list((tmp_path / "run").glob("wandb/offline-run-*"))
    assert "no API key" in caplog.text
    assert os.environ["WANDB_MODE"] == "online"


def test_a_run_that_a_sweeps_agent_starts_goes_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent has logged in, often without a key in the environment, and waits for figures."""
    modes: list[str] = []

    def offline(**options: Any) -> Any:
        modes.append(options["mode"])
        raise ConnectionError("unreachable")

    monkeypatch.setattr("wandb.init", offline)
    monkeypatch.setattr("headloc.reporting.loggers._require_key", lambda wandb: None)
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    open_logger(WANDB, tmp_path, SETTINGS).close()
    monkeypatch.setenv("WANDB_MODE", "offline")
    open_logger(WANDB, tmp_path, SETTINGS).close()
    assert modes == ["online", "offline", "offline"]


def test_curves_go_to_a_file_where_wandb_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(**options: Any) -> None:
        raise RuntimeError("service failed\nwith many lines")

    monkeypatch.setattr("wandb.init", broken)
    logger = open_logger(WANDB, tmp_path, SETTINGS)
    assert logger.wandb_run is None
    assert len(caplog.records) == 1
    assert "service failed" in caplog.text
    assert "many lines" not in caplog.text
    logger.lightning.log_metrics({"val/accuracy": 0.5}, step=3)
    logger.lightning.save()
    logger.close()
    with (tmp_path / "curves" / "metrics.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"step": "3", "val/accuracy": "0.5"}]


def test_earlier_curves_are_kept(tmp_path: Path) -> None:
    for value in (1, 2):
        logger = open_logger({"kind": "csv"}, tmp_path, {})
        logger.lightning.log_metrics({"x": value}, step=0)
        logger.lightning.save()
        logger.close()
    assert "\n0,2\n" in (tmp_path / "curves" / "metrics.csv").read_text().replace("\r", "")
    assert "\n0,1\n" in (tmp_path / "curves" / "metrics.1.csv").read_text().replace("\r", "")


def test_no_logger_and_disabled_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_logger({"kind": "none"}, tmp_path, {}).lightning is False
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = open_logger(WANDB, tmp_path, {})
    assert logger.wandb_run is None
    assert not (tmp_path / "wandb").exists()
    log_result(logger, made_up_result(), {}, tmp_path)


def test_unknown_kind_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(HeadlocError, match="Did you mean 'wandb'"):
        open_logger({"kind": "wanbd"}, tmp_path, {})


def test_a_failing_tracker_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("gone")

        offline = False
        settings = None

    logger = RunLogger(False, Broken())
    with caplog.at_level(logging.WARNING):
        log_result(logger, made_up_result(), {}, tmp_path)
        logger.close()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_artifact_names() -> None:
    assert artifact_name("add_k") == "circuit-add_k"
    assert artifact_name("a b/<c>") == "circuit-a-b-c-"
    # Nothing that a task is called leads elsewhere.
    for task in ("../../x", "/etc/passwd", "..\\x", "a\0b", "x" * 500, "\u202eabc"):
        name = artifact_name(task)
        assert re.fullmatch(r"circuit-[A-Za-z0-9_.-]{1,120}", name)
        assert Path("folder", name).resolve().parent == Path("folder").resolve()
