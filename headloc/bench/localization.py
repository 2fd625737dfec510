"""Whole localizations, timed by stage: the add-k experiment of Hu et al. 2025 and a sparsity path.

Both run through `headloc.localizer.localize` as a user's would, means and verdict included; only
writing files is left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from headloc.bank.settings import PathSparsity
from headloc.bench.own_answers import OwnAnswers, answering_with_numbers
from headloc.bench.settings import LocalizationSizes
from headloc.gates import L1Gates, PenaltySparsity, SparsityControl
from headloc.lm.frozen import FrozenLM
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.run import localize
from headloc.localizer.selection import Auto, Elbow, Selection
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives import FunctionVector
from headloc.objectives.prompts import Progress
from headloc.stages import Stages

BARS = {"add_k": 300.0, "path": 900.0}
"""Seconds in which one H200 should finish either on random weights of Llama-3-8B's shape."""


class StageClock:
    """Passes stages on and keeps how long each of them took.

    Args:
        stages: shows the stages.
        device: an accelerator is waited for at the end of a stage.
    """

    def __init__(self, stages: Stages, device: torch.device) -> None:
        self._stages, self._device = stages, device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[Progress]:
        """Open a stage."""
        with self._stages(name) as progress:
            start = time.perf_counter()
            yield progress
            self.add(name, start)

    def add(self, name: str, start: float) -> None:
        """Count the time since `start` towards a stage."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class _Training(L.Callback):
    """Shows and times the training as a stage; its steps are the progress."""

    def __init__(self, clock: StageClock) -> None:
        self._clock = clock
        self._stage: Any = None
        self._progress: Progress | None = None
        self.steps = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stage = self._clock("training")
        self._progress = self._stage.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        self.steps = trainer.global_step
        if self._progress is not None:
            self._progress(self.steps, int(trainer.estimated_stepping_batches))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stage.__exit__(None, None, None)


def localization(
    lm: FrozenLM, sizes: LocalizationSizes, *, seed: int, stages: Stages
) -> dict[str, dict[str, Any]]:
    """Run both localizations on a random model and return their seconds by stage.

    Args:
        lm: a model with random weights; its output layer is changed in place.
        sizes: how much data and how many steps.
        seed: seed of the runs.
        stages: shows progress.
    """
    answering_with_numbers(lm)
    found: dict[str, dict[str, Any]] = {}
    kinds: dict[str, tuple[SparsityControl | PathSparsity, Selection]] = {
        "add_k": (PenaltySparsity(0.05), Elbow()),
        "path": (PathSparsity(sizes.weights, sizes.seeds), Auto()),
    }
    for name, (sparsity, selection) in kinds.items():
        found[name] = _timed(name, lm, sizes, sparsity, selection, seed, stages)
    return found


def _timed(
    name: str,
    lm: FrozenLM,
    sizes: LocalizationSizes,
    sparsity: SparsityControl | PathSparsity,
    selection: Selection,
    seed: int,
    stages: Stages,
) -> dict[str, Any]:
    clock = StageClock(stages, lm.device)
    training = _Training(clock)
    if lm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(lm.device)
    start = time.perf_counter()
    result = localize(
        lm,
        OwnAnswers(lm),
        objective=FunctionVector(prompts_per_task=sizes.prompts_per_task),
        gates=L1Gates(),
        sparsity=sparsity,
        selection=selection,
        data=DataSettings(
            train_prompts=sizes.train_prompts,
            selection_prompts=sizes.selection_prompts,
            test_prompts=sizes.test_prompts,
            held_out_prompts=sizes.held_out_prompts,
            batch_size=sizes.batch_size,
        ),
        optimizer=OptimizerSettings(lr=0.01, final_lr=1.0),
        verdict=VerdictSettings(random_sets=sizes.random_sets),
        trainer={
            "max_epochs": sizes.epochs,
            "accelerator": "cpu" if lm.device.type == "cpu" else "gpu",
            "enable_progress_bar": False,
        },
        callbacks=[training],
        seed=seed,
        stages=clock,
    )
    clock.add("everything", start)
    seconds = clock.seconds.pop("everything")
    peak = torch.cuda.max_memory_allocated(lm.device) if lm.device.type == "cuda" else None
    gate_sets = 1 if result.path is None else len(result.path.gate_sets)
    return {
        "seconds": seconds,
        "seconds_by_stage": clock.seconds,
        "bar_seconds_on_one_h200": BARS[name],
        "steps": training.steps,
        "seconds_per_step": clock.seconds["training"] / max(1, training.steps),
        "gate_sets": gate_sets,
        "peak_bytes": peak,
        "forward_equivalents": result.ledger.forward_equivalents(),
    }
