"""Peak memory of a step, of tensors alone: exact, and the same on every run.

On CUDA the allocator counts.  On a CPU the allocations and releases that torch's profiler records
are summed in order; unlike the size of the process this leaves out what libraries keep for later.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that one call holds at once, beyond what was held before it.

    The first call of `work` is not measured: it allocates what later calls find there.
    """
    work()
    with _no_collection():
        return _peak_on_cuda(work, device) if device.type == "cuda" else _peak_on_cpu(work)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from collecting garbage, of which there is none at first.

    Tensors in a reference cycle that something else left behind would otherwise be released while
    `work` runs, at a moment that depends on what ran before, and be taken off its peak.
    """
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _peak_on_cuda(work: Callable[[], object], device: torch.device) -> int:
    import torch

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def _peak_on_cpu(work: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    # Some builds of the profiler announce their start and stop on stderr.
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _no_stderr():
        profiler.start()
    try:
        work()
    finally:
        with _no_stderr():
            profiler.stop()
    held = most = 0
    for change in _changes(profiler):
        held += change
        most = max(most, held)
    return most


def _changes(profiler: Any) -> list[int]:
    """Bytes allocated (or, below zero, released) on the CPU, in order of time."""
    events = profiler.profiler.kineto_results.events()
    memory = [event for event in events if event.name() == "[memory]"]
    memory.sort(key=lambda event: event.start_ns())
    return [event.nbytes() for event in memory if event.device_type().name == "CPU"]


@contextmanager
def _no_stderr() -> Iterator[None]:
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the weights."""
    unique = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    return sum(parameter.nbytes for parameter in unique.values())


def cache_bytes(model: nn.Module, work: Callable[[], object]) -> int:
    """Return the bytes of the keys and values that the passes of one call of `work` run on.

    What passes share is counted once, so this tells whether gate sets have caches of their own.
    """
    seen: dict[int, int] = {}
    alive: list[Any] = []

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        cache = kwargs.get("past_key_values")
        for layer in getattr(cache, "layers", ()):
            for tensor in (layer.keys, layer.values):
                storage = tensor.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
                # Memory that is released could be handed out again under the same address.
                alive.append(storage)

    handle = model.register_forward_hook(after, with_kwargs=True)
    try:
        work()
    finally:
        handle.remove()
    return sum(seen.values())
