"""Faults at a chosen moment of a run: a Lightning callback, and a patch for every stage."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from headloc.localizer.module import GateTraining

TRAINING = "training"
"""The stage that has no name on the console."""


class Poison(L.Callback):
    """Does some harm at the start of the second epoch.

    Args:
        harm: what: gates (NaN in them), interrupt, terminate, kill, remove (the output folder),
            core (kill the service of Weights & Biases).
        rank: in which process, where there are several.
        seed: in the run of which seed alone; None for all.
        after: a path that is waited for before.
    """

    def __init__(
        self, harm: str, rank: int = 0, seed: int | None = None, after: str | None = None
    ) -> None:
        self.harm, self.rank, self.seed, self.after = harm, rank, seed, after

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do it."""
        assert isinstance(pl_module, GateTraining)
        own = self.seed in (None, getattr(pl_module, "seed", None))
        if trainer.current_epoch != 1 or trainer.global_rank != self.rank or not own:
            return
        if self.after is not None:
            _wait_for(Path(self.after))
        if self.harm == "gates":
            with torch.no_grad():
                next(pl_module.gate_sets[0].parameters())[0] = float("nan")
        elif self.harm == "remove":
            shutil.rmtree(trainer.default_root_dir)
        elif self.harm == "core":
            for number in services():
                os.kill(number, signal.SIGKILL)
        else:
            os.kill(os.getpid(), SIGNALS[self.harm])


SIGNALS = {
    "interrupt": signal.SIGINT, "terminate": signal.SIGTERM, "kill": signal.SIGKILL,
}  # fmt: skip


def _wait_for(path: Path, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)


def services() -> list[int]:
    """Return the processes of W&B's service that this process has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, state = (entry / "cmdline").read_bytes(), (entry / "stat").read_text()
        except OSError:
            continue
        parent = int(state.rpartition(")")[2].split()[1])
        if b"wandb-core" in command and parent == os.getpid():
            found.append(int(entry.name))
    return found


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what headloc has warned of; other libraries log as well."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("headloc")
    ]


def poison(harm: str, **options: Any) -> str:
    """Return the option of a localization that does harm in training."""
    given = "".join(f",{name}:{value}" for name, value in options.items())
    return f"+callbacks.poison={{_target_:tests.trust.poison.Poison,harm:{harm}{given}}}"


def at_stage(
    monkeypatch: pytest.MonkeyPatch, stage: str, harm: Callable[[], None], *, once: bool = True
) -> None:
    """Do harm at the first pass of the model inside a stage, or at every one.

    Args:
        monkeypatch: undone by the caller's test.
        stage: name of the stage on the console, or `TRAINING`.
        harm: what is done.
        once: whether later passes are left in peace.
    """
    from headloc.lm.frozen import FrozenLM
    from headloc.reporting.console import Console

    open_stages: list[str] = []
    seen: list[str] = []
    shown, forward = Console.stage, FrozenLM._forward

    @contextmanager
    def noted(self: Console, name: str) -> Iterator[Any]:
        with shown(self, name) as progress:
            open_stages.append(name)
            seen.append(name)
            try:
                yield progress
            finally:
                open_stages.remove(name)

    def harmed(self: FrozenLM, *arguments: Any, **options: Any) -> Any:
        training = not open_stages and "prompts and prefixes" in seen
        here = stage in open_stages or (stage == TRAINING and training)
        if here and not (once and done):
            done.append(stage)
            harm()
        return forward(self, *arguments, **options)

    done: list[str] = []
    monkeypatch.setattr(Console, "stage", noted)
    monkeypatch.setattr(FrozenLM, "_forward", harmed)
