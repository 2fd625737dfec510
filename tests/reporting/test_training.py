from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console as RichConsole
from torch.utils.data import DataLoader

from headloc.reporting.console import Console
from headloc.reporting.training import TrainingBar, TrainingLines

# What Lightning says on this torch, and of a loader without workers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]


class Logs(L.LightningModule):
    """Logs what the localizer logs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log_dict({"train/task_loss": 0.25, "gates/open_expected": 7.5}, batch_size=1)
        return self.weight.sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/accuracy", 0.875, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(options: dict[str, Any], callbacks: list[L.Callback], folder: Path) -> L.Trainer:
    loader = DataLoader(torch.zeros(4, 1))
    trainer = L.Trainer(
        max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
        callbacks=callbacks, **options,
    )  # fmt: skip
    trainer.fit(Logs(), loader, loader)
    return trainer


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    file = io.StringIO()
    console = RichConsole(file=file, force_terminal=True, width=100)
    monkeypatch.setattr(Console, "_err", property(lambda self: console))
    return file


def test_bar_shows_accuracy_loss_and_open_heads(terminal: io.StringIO, tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    callbacks = Console().callbacks(options)
    assert isinstance(callbacks[0], TrainingBar)
    assert options == {"enable_progress_bar": False}
    trainer = _fit(options, callbacks, tmp_path)
    assert trainer.progress_bar_callback is None
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "acc 0.875" in shown
    assert "loss 0.250" in shown
    assert "open 7.5" in shown
    assert "10/10" in shown
    assert shown.rstrip().splitlines()[-1].startswith("training")


def test_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"enable_progress_bar": True}
    callbacks = Console().callbacks(options)
    assert isinstance(callbacks[0], TrainingLines)
    _fit(options, callbacks, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training ..."
    assert lines[1] == "  epoch 2/10: accuracy 0.875, loss 0.250, open heads 7.5"
    assert len(lines) == 7


def test_no_bar_where_none_is_wanted(terminal: io.StringIO) -> None:
    options = {"enable_progress_bar": False}
    assert Console().callbacks(options) == []
    assert options == {"enable_progress_bar": False}


def test_the_bar_closes_when_training_fails(terminal: io.StringIO, tmp_path: Path) -> None:
    class Fails(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("no")

    options: dict[str, Any] = {}
    callbacks = [*Console().callbacks(options), Fails()]
    with pytest.raises(RuntimeError, match="no"):
        _fit(options, callbacks, tmp_path)
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1
