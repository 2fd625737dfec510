"""Run the parts of a benchmark one after another on one model."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from headloc.bench import comparisons, head_attention, neurons
from headloc.bench.comparisons import Clock, Note
from headloc.bench.one_at_a_time import Sizes
from headloc.bench.result import BenchResult, Measured
from headloc.bench.settings import BenchSettings, LocalizationSizes
from headloc.bench.steps import Material, material
from headloc.lm.frozen import FrozenLM
from headloc.objectives.prompts import Progress
from headloc.reporting.versions import package_versions
from headloc.stages import Stages, silent
from headloc.tasks import AddK, TaskFamily

Comparison = Callable[[Material, Clock, Progress], list[Measured]]

_COMPARISONS: dict[str, tuple[str, Comparison]] = {
    "prefix_cache": ("prefix cache against full passes", comparisons.prefix_cache),
    "gate_overhead": ("gated step against bare model", comparisons.gate_overhead),
    "bank": ("bank against one gate set", comparisons.bank),
    "top_neurons": ("exact search against every neuron", neurons.top_neurons),
    "head_attention": ("attention of some heads against all maps", head_attention.head_attention),
}


def run_bench(
    lm: FrozenLM,
    settings: BenchSettings,
    *,
    localization: LocalizationSizes | None = None,
    patching: Sizes | None = None,
    stages: Stages = silent,
    note: Note = lambda line: None,
) -> BenchResult:
    """Measure what the settings name.

    Args:
        lm: the frozen model.
        settings: which parts, how often and at which sizes.
        localization: sizes of whole localizations.
        patching: how much work both forms of the patching ratios do.
        stages: shows the progress of the parts.
        note: writes a line on how long something takes, or why it is left out.
    """
    threads = torch.get_num_threads()
    clock = Clock(settings, threads, note)
    result = BenchResult(_circumstances(lm, settings, threads))
    singles = [part for part in settings.parts if part != "localization"]
    if singles:
        with stages("prompts and prefixes") as progress:
            made = material(
                lm,
                task_of(settings.shots),
                prompts=settings.prompts,
                batch_size=settings.batch_size,
                seed=settings.seed,
                progress=progress,
            )
        _single_steps(singles, made, clock, stages, patching, result)
    if "localization" in settings.parts:
        from headloc.bench.localization import localization as whole

        sizes = localization or LocalizationSizes()
        result.localization.update(whole(lm, sizes, seed=settings.seed, stages=stages))
    result.circumstances["load_average_after"] = _load()
    return result


def task_of(shots: int) -> TaskFamily:
    """Return the task that is measured on: add-k with a number of demonstrations.

    Source: Hu et al. 2025, tasks.
    """
    return AddK(shots=shots)


def _single_steps(
    parts: list[str],
    made: Material,
    clock: Clock,
    stages: Stages,
    work: Sizes | None,
    result: BenchResult,
) -> None:
    for number, part in enumerate(parts, start=1):
        clock.note(f"part {number} of {len(parts)}: {part}")
        if part in _COMPARISONS:
            title, compare = _COMPARISONS[part]
            with stages(title) as progress:
                result.ratios += compare(made, clock, progress)
        elif part == "scaling":
            from headloc.bench.scaling import scaling

            result.scaling += scaling(made, clock, stages, task_of)
        else:
            from headloc.bench.patching import patching

            result.ratios += patching(made, clock, stages, work)


def _circumstances(lm: FrozenLM, settings: BenchSettings, threads: int) -> dict[str, Any]:
    device = lm.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "model": lm.source.to_dict(),
        "width": lm.width,
        "device": str(device),
        "device_name": name,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "attention": str(getattr(lm.model.config, "_attn_implementation", None)),
        "threads": threads,
        "processors": os.cpu_count(),
        "load_average_before": _load(),
        "versions": package_versions(),
        "parts": list(settings.parts),
        "repetitions": settings.repetitions,
        "seed": settings.seed,
    }


def _load() -> list[float] | None:
    """Return the load of the machine over the last minutes, where the system tells it."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None
