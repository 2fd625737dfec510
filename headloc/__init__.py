"""headloc: find the few attention heads that carry a few-shot ability, and read them.

Names are imported on first use, so that `import headloc` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headloc.bundled import load_bundled
    from headloc.circuit import Circuit
    from headloc.errors import HeadlocError
    from headloc.gates import (
        HardConcreteGates,
        L1Gates,
        PenaltySparsity,
        TargetSparsity,
        TopKGates,
    )
    from headloc.heads import HeadId, HeadLayout
    from headloc.lm import FrozenLM, load_lm
    from headloc.localizer.run import Localization, localize
    from headloc.objectives import InPlace
    from headloc.tasks import AddK, Labels, Pairs, Template

__version__ = "0.1.0"

_HOME = {
    "AddK": "headloc.tasks",
    "Circuit": "headloc.circuit",
    "FrozenLM": "headloc.lm",
    "HardConcreteGates": "headloc.gates",
    "HeadId": "headloc.heads",
    "HeadLayout": "headloc.heads",
    "HeadlocError": "headloc.errors",
    "InPlace": "headloc.objectives",
    "L1Gates": "headloc.gates",
    "Labels": "headloc.tasks",
    "Localization": "headloc.localizer.run",
    "Pairs": "headloc.tasks",
    "PenaltySparsity": "headloc.gates",
    "TargetSparsity": "headloc.gates",
    "Template": "headloc.tasks",
    "TopKGates": "headloc.gates",
    "load_bundled": "headloc.bundled",
    "load_lm": "headloc.lm",
    "localize": "headloc.localizer.run",
}

__all__ = [
    "AddK",
    "Circuit",
    "FrozenLM",
    "HardConcreteGates",
    "HeadId",
    "HeadLayout",
    "HeadlocError",
    "InPlace",
    "L1Gates",
    "Labels",
    "Localization",
    "Pairs",
    "PenaltySparsity",
    "TargetSparsity",
    "Template",
    "TopKGates",
    "__version__",
    "load_bundled",
    "load_lm",
    "localize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
