"""Peak memory counts every byte that is held at once, and nothing else."""

from __future__ import annotations

import gc

import torch

from headloc.bench.memory import cache_bytes, peak_bytes, weight_bytes
from headloc.bench.shapes import named_shape, random_lm
from headloc.bench.steps import material
from headloc.tasks import AddK

CPU = torch.device("cpu")
MB = 2**20
COUNT = MB // 4


def test_the_peak_is_what_is_held_at_once() -> None:
    def one_after_another() -> None:
        for _ in range(5):
            torch.empty(3 * COUNT)

    def at_once() -> None:
        held = [torch.empty(3 * COUNT) for _ in range(5)]
        del held

    assert peak_bytes(one_after_another, CPU) == 3 * MB
    assert peak_bytes(at_once, CPU) == 15 * MB


def test_what_was_there_before_does_not_count() -> None:
    kept = torch.zeros(4 * COUNT)
    assert peak_bytes(lambda: torch.empty(COUNT), CPU) == MB
    assert kept.sum() == 0


class _Cycle:
    """Holds itself, so that only the garbage collector releases its tensor."""

    def __init__(self) -> None:
        self.itself, self.tensor = self, torch.empty(8 * COUNT)


def test_garbage_from_before_is_not_taken_off_the_peak() -> None:
    """When Python collects it depends on everything that ran before."""
    calls: list[None] = []

    def leave_garbage() -> None:
        _Cycle()

    def collect_when_measured() -> None:
        if calls:
            gc.collect()
        calls.append(None)
        torch.empty(COUNT)

    assert peak_bytes(leave_garbage, CPU) == 8 * MB
    assert peak_bytes(collect_when_measured, CPU) == MB
    assert gc.isenabled()


def test_shared_weights_count_once() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)
    )
    model[1].weight = model[0].weight
    assert weight_bytes(model) == 8 * 8 * 4


def test_a_bank_runs_on_one_cache_and_its_own_columns() -> None:
    """G gate sets hold C + G columns per row, where a copy for each would hold G (C + 1)."""
    lm = random_lm(named_shape("llama_tiny"), name="llama_tiny")
    made = material(lm, AddK(shots=2), prompts=8, batch_size=8, seed=0)
    assert made.prompts.prefix is not None
    columns = made.prompts.prefix.columns
    one = cache_bytes(lm.model, made.step())
    bank = cache_bytes(lm.model, made.bank_step(6))
    assert one == made.prompts.prefix.nbytes * (columns + 1) // columns
    assert bank == made.prompts.prefix.nbytes * (columns + 6) // columns
