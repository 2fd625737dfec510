"""A training step that logs nothing waits for the device once, to see that its numbers are numbers.

Every wait lets an accelerator run dry.  A wait is an operation whose result Python, or the shape of
a tensor, depends on: reading a scalar, or picking by a mask.  They are counted on a CPU, where they
are the same operations.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headloc import localize
from headloc.bank import PathSparsity
from headloc.gates import HardConcreteGates, L1Gates, TargetSparsity, TopKGates
from headloc.objectives import FunctionVector, InPlace
from tests.localizer.planted import OwnAnswers, planted_lm, small

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten.equal.default, aten.is_nonzero.default,
}  # fmt: skip
PACKAGES = ("transformers", "optim", "lightning", "headloc")
"""Who asks: the mask of a plain pass, Adam's step counter (on the host), logging, or headloc."""


class Waits(TorchDispatchMode):
    """Counts what waits for the device, by the package and file that ask."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            self.found[_asker(sys._getframe(1))] += 1
        return func(*args, **(kwargs or {}))


def _asker(frame: FrameType | None) -> str:
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        for package in PACKAGES:
            if package in parts:
                return "/".join(parts[len(parts) - parts[::-1].index(package) - 1 :])
        frame = frame.f_back
    return "elsewhere"


class PerStep(L.Callback):
    """Counts from the start of a batch to the start of the next one of the same epoch."""

    def __init__(self) -> None:
        self.steps: list[Counter[str]] = []
        self._waits: Waits | None = None

    def on_train_batch_start(self, *args: Any) -> None:
        self._end()
        self._waits = Waits()
        self._waits.__enter__()

    def on_validation_start(self, *args: Any) -> None:
        # The last step of an epoch logs.
        if self._waits is not None:
            self._end()
            self.steps.pop()

    def _end(self) -> None:
        if self._waits is not None:
            self._waits.__exit__(None, None, None)
            self.steps.append(self._waits.found)
        self._waits = None


CASES: dict[str, dict[str, Any]] = {
    "hard concrete": {"gates": HardConcreteGates()},
    "target": {"gates": HardConcreteGates(), "sparsity": TargetSparsity(3)},
    "top k": {"gates": TopKGates()},
    "path": {"gates": L1Gates(), "sparsity": PathSparsity([0.001, 0.01], seeds=2)},
    "function vector": {"gates": L1Gates(), "objective": FunctionVector(prompts_per_task=4)},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_for_the_device_once(case: str) -> None:
    counter, epochs, steps = PerStep(), 3, 4
    settings = small(trainer={"max_epochs": epochs, "log_every_n_steps": 10**6})
    settings |= {"objective": InPlace("mean"), **CASES[case]}
    localize(planted_lm(), OwnAnswers(planted_lm()), seed=3, callbacks=[counter], **settings)
    assert len(counter.steps) == epochs * (steps - 1)
    # The very first step logs, and so makes the ones after it fetch what was logged.
    for found in counter.steps[steps - 1 :]:
        own = {asker: n for asker, n in found.items() if asker.startswith("headloc/")}
        assert own == {"headloc/localizer/module.py": 1}
        assert not any(asker.startswith(("lightning/", "elsewhere")) for asker in found)
