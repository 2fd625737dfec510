"""Analyses of a circuit, one file per question (imported as `headloc.analysis`).

`base.py` holds the interface and tells how to write one.  Everything is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Analysis, Findings, NotApplicable, Picture, Subject, Table
    from .features import feature_directions
    from .head_spaces import head_spaces
    from .identity import extraction_map
    from .linear import principal_angles, principal_components
    from .periodic import Periodic
    from .reading import read_chunks
    from .regression import fit_period, spectrum
    from .self_correction import SelfCorrection
    from .signals import Signals
    from .steering import Steering
    from .subspaces import Subspaces

_HOME = {
    "Analysis": "base",
    "Findings": "base",
    "NotApplicable": "base",
    "Periodic": "periodic",
    "Picture": "base",
    "SelfCorrection": "self_correction",
    "Signals": "signals",
    "Steering": "steering",
    "Subject": "base",
    "Subspaces": "subspaces",
    "Table": "base",
    "extraction_map": "identity",
    "feature_directions": "features",
    "fit_period": "regression",
    "head_spaces": "head_spaces",
    "principal_angles": "linear",
    "principal_components": "linear",
    "read_chunks": "reading",
    "spectrum": "regression",
}

__all__ = [
    "Analysis",
    "Findings",
    "NotApplicable",
    "Periodic",
    "Picture",
    "SelfCorrection",
    "Signals",
    "Steering",
    "Subject",
    "Subspaces",
    "Table",
    "extraction_map",
    "feature_directions",
    "fit_period",
    "head_spaces",
    "principal_angles",
    "principal_components",
    "read_chunks",
    "spectrum",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
