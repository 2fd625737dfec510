"""Callbacks that show the training of the gates: a live bar, or a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import lightning as L

from headloc.reporting.estimate import TimeLeft

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_LINES = 5
"""Lines of a whole training where there is no terminal, and it does not take long."""

_SECONDS = 30.0
"""Time after which a line is due in any case."""


class TrainingBar(L.Callback):
    """A live bar over the steps of training with accuracy, loss and open heads.

    Args:
        console: the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._start = 0.0
        self._estimate = TimeLeft()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar; a resumed training starts where it stopped."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("training {task.fields[epoch]}"),
            BarColumn(bar_width=8),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[figures]}"),
        )
        self._start = time.monotonic()
        self._estimate = TimeLeft()
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._bar.start()
        total = int(trainer.estimated_stepping_batches)
        self._task = self._bar.add_task("", total=total, epoch="", figures="", left="")
        self._show(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar."""
        self._show(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the new accuracy."""
        self._show(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar and leave a line."""
        if self._close():
            seconds = time.monotonic() - self._start
            figures = ", ".join(figure_texts(trainer))
            self._console.print(f"[dim]training  {seconds:.1f} s  {figures}[/dim]", highlight=False)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar."""
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the bar."""
        self._close()

    def _show(self, trainer: L.Trainer) -> None:
        if self._bar is None or self._task is None:
            return
        self._estimate.report(trainer.global_step, int(trainer.estimated_stepping_batches))
        self._bar.update(
            self._task,
            completed=trainer.global_step,
            left=self._estimate.text(),
            epoch=epoch_text(trainer),
            figures="  ".join(figure_texts(trainer, short=True)),
        )

    def _close(self) -> bool:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
        return bar is not None


class TrainingLines(L.Callback):
    """A plain line every few epochs.

    Args:
        note: writes a line.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._start = self._last = 0.0
        self._estimate = TimeLeft()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that training starts."""
        self._start = self._last = time.monotonic()
        self._estimate = TimeLeft()
        self._note("training ...")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Say how long it still takes, when that has not been said for a while."""
        self._estimate.report(trainer.global_step, int(trainer.estimated_stepping_batches))
        if time.monotonic() - self._last >= _SECONDS:
            self._say(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how it stands, a few times in all."""
        epoch, every = trainer.current_epoch + 1, max(1, (trainer.max_epochs or 0) // _LINES)
        if epoch % every == 0:
            self._say(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how long it took."""
        self._note(f"training: {time.monotonic() - self._start:.1f} s")

    def _say(self, trainer: L.Trainer) -> None:
        self._last = time.monotonic()
        parts = [*figure_texts(trainer), self._estimate.text()]
        self._note(f"  epoch {epoch_text(trainer)}: {', '.join(part for part in parts if part)}")


def epoch_text(trainer: L.Trainer) -> str:
    """Return the current epoch of all, such as `3/25`."""
    total = trainer.max_epochs
    done = trainer.current_epoch + 1
    return f"{done}/{total}" if total is not None and total > 0 else f"{done}"


def figure_texts(trainer: L.Trainer, *, short: bool = False) -> list[str]:
    """Return accuracy, loss and open heads as far as they have been logged."""
    return list(_figure_texts(trainer, short))


def _figure_texts(trainer: L.Trainer, short: bool) -> Iterator[str]:
    logged = trainer.callback_metrics
    sets = getattr(trainer.lightning_module, "gate_sets", ())
    mlps = any(gates.mlps for gates in sets)
    for key, label, brief, write in (
        ("val/accuracy", "accuracy", "acc", "{:.3f}"),
        ("train/task_loss", "loss", "loss", "{:.3f}"),
        ("gates/open_expected", f"open heads{' and FFNs' * mlps}", "open", "{:.1f}"),
    ):
        if key in logged:
            yield f"{brief if short else label} {write.format(float(logged[key]))}"
