"""The command line in this process, and a finished run to work with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headloc.cli import main
from tests.commands.runs import Headloc, Result, quick
from tests.localizer.planted import planted_lm


@pytest.fixture
def headloc(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Headloc:
    """Call the command line from an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["headloc"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("HEADLOC_TRACEBACK", raising=False)

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a short run on the bundled model."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headloc"])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        assert main(quick(folder)) == 0
    return folder


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with other layers and heads than the bundled model, which knows no task."""
    folder = tmp_path_factory.mktemp("models") / "other"
    lm = planted_lm()
    lm.model.save_pretrained(folder)
    assert lm.tokenizer is not None
    lm.tokenizer.save_pretrained(folder)
    return folder
