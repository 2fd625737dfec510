"""How long would a localization take here, and would it fit into memory?

A small localization is run as a whole and every stage is scaled by what a default one does more:
prompts for means, prefixes, epochs and selection, (gate set, prompt) pairs for the verdict.  Only
the second epoch of the trial counts, as the first also warms up kernels.

The memory is that of the weights, of the prompt caches and, on a GPU, the peak of the trial above
its weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
import torch

from headloc.doctor.check import Check
from headloc.lm.batch import TokenBatch
from headloc.lm.frozen import FrozenLM
from headloc.lm.memory import free_bytes, in_gigabytes
from headloc.localizer.run import localize
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives.prompts import Progress, encode_examples
from headloc.randomness import stream
from headloc.reporting.estimate import in_words
from headloc.tasks import TaskFamily

EPOCHS = 12
"""Epochs of a default localization (conf/trainer)."""

REPLICATES = 4
"""Replicates of a default localization (conf/verdict)."""

_CONDITIONS = 4
"""Conditions of a verdict beside the random sets: full, circuit, without it, off."""
_ROOM = 0.9
_SAMPLED_PREFIXES = 4
_STAGES = 5
"""Stages of a localization with held-out tasks: means, prompts, selection, two verdicts."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds of the stages of a small localization.

    Attributes:
        data: its prompt sets.
        verdict: its controls.
        stages: seconds by name of the stage.
        epoch: seconds of its second epoch, validation included.
        peak: most bytes on a GPU during it, above those before it; None on other devices.
    """

    data: DataSettings
    verdict: VerdictSettings
    stages: dict[str, float]
    epoch: float
    peak: int | None

    def seconds(self, data: DataSettings, verdict: VerdictSettings, epochs: int) -> float:
        """Return about how long a localization of other sizes takes."""
        own = self.data
        means = data.mean_prompts / own.mean_prompts
        fitted = (data.train_prompts + data.selection_prompts) / (
            own.train_prompts + own.selection_prompts
        )
        selected = data.selection_prompts / own.selection_prompts
        judged = (data.test_prompts * _sets(verdict)) / (own.test_prompts * _sets(self.verdict))
        scaled = {
            "mean head outputs": means,
            "prompts and prefixes": fitted,
            "selecting heads": selected * (1 + verdict.replicates),
        }
        stages = sum(took * scaled.get(name, judged) for name, took in self.stages.items())
        return stages + epochs * (1 + verdict.replicates) * fitted * self.epoch


def _sets(verdict: VerdictSettings) -> int:
    return 2 * verdict.random_sets + _CONDITIONS


class _Epochs(L.Callback):
    """Times the second epoch."""

    def __init__(self) -> None:
        self.started: list[float] = []
        self.ended = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started.append(time.monotonic())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ended = time.monotonic()


def run_trial(
    lm: FrozenLM, task: TaskFamily, *, prompts: int, seed: int, progress: Progress
) -> Trial:
    """Run a small localization and time its stages.

    Raises:
        HeadlocError: when it fails, as a localization would.
    """
    data = DataSettings(
        train_prompts=prompts,
        selection_prompts=max(1, prompts // 2),
        test_prompts=max(1, prompts // 2),
        held_out_prompts=max(1, prompts // 2),
        mean_prompts=max(1, prompts // 2),
        batch_size=min(DataSettings().batch_size, prompts),
    )
    verdict = VerdictSettings(random_sets=2)
    took: dict[str, float] = {}
    epochs = _Epochs()

    @contextmanager
    def timed(name: str) -> Iterator[Progress]:
        start = time.monotonic()
        yield lambda done, total: None
        took[name] = time.monotonic() - start
        progress(len(took), _STAGES)

    cuda = lm.device.type == "cuda"
    before = 0
    if cuda:
        torch.cuda.reset_peak_memory_stats(lm.device)
        before = torch.cuda.memory_allocated(lm.device)
    localize(
        lm,
        task,
        data=data,
        verdict=verdict,
        trainer={"max_epochs": 2, "enable_progress_bar": False},
        callbacks=[epochs],
        seed=seed,
        stages=timed,
    )
    peak = torch.cuda.max_memory_allocated(lm.device) - before if cuda else None
    return Trial(data, verdict, took, epochs.ended - epochs.started[-1], peak)


def check_time(
    lm: FrozenLM, task: TaskFamily, *, prompts: int, seed: int, progress: Progress
) -> Check:
    """Estimate the time of a default localization on this machine."""
    trial = run_trial(lm, task, prompts=prompts, seed=seed, progress=progress)
    data = DataSettings()
    bare = trial.seconds(data, VerdictSettings(), EPOCHS)
    whole = trial.seconds(data, VerdictSettings(replicates=REPLICATES), EPOCHS)
    figures = {"seconds": whole, "seconds_without_replicates": bare}
    if trial.peak is not None:
        figures["peak_bytes"] = float(trial.peak)
    found = (
        f"a default localization takes {_roughly(whole)} on this machine, {_roughly(bare)} with "
        "verdict.replicates=0"
    )
    return Check("time", "ok", found, "", figures)


@torch.no_grad()
def check_memory(lm: FrozenLM, task: TaskFamily, *, seed: int) -> Check:
    """Compare what a default localization keeps with what is free."""
    weights = sum(
        parameter.numel() * parameter.element_size() for parameter in lm.model.parameters()
    )
    data = DataSettings()
    most = data.train_prompts + data.selection_prompts + data.test_prompts
    each = _prefix_bytes(lm, task, seed)
    free = free_bytes(lm.device)
    figures = {"weight_bytes": float(weights), "cache_bytes": float(each * most)}
    found = f"{in_gigabytes(weights)} of weights, {in_gigabytes(each * most)} of prompt caches"
    if free is None:
        return Check("memory", "ok", found, "", figures)
    figures["free_bytes"] = float(free)
    found += f", {in_gigabytes(free)} free beside the weights"
    if each * most > _ROOM * free:
        return Check(
            "memory", "note", found,
            "Caches of this size are moved to the host or left out (data.cache=host or none). "
            "Fewer data.train_prompts or task.shots, or model.dtype=bfloat16, keep it fast.",
            figures,
        )  # fmt: skip
    return Check("memory", "ok", found, "", figures)


def _prefix_bytes(lm: FrozenLM, task: TaskFamily, seed: int) -> int:
    """Bytes of the cached prefix of one prompt, 0 where none is kept."""
    if not lm.supports_prefix_cache:
        return 0
    examples = task.draw(_SAMPLED_PREFIXES, stream(seed, "doctor", "memory"), split="train")
    batch: TokenBatch = encode_examples(lm, examples, task.template)[1]
    return lm.prefix(batch).nbytes // _SAMPLED_PREFIXES


def _roughly(seconds: float) -> str:
    return in_words(seconds).removesuffix(" left")
