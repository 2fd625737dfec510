"""Analyses of a circuit, one file per question (imported as `headloc.analysis`).

`base.py` holds the interface and tells how to write one.  Everything is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attribution import Attribution
    from .base import Analysis, Findings, NotApplicable, Picture, Subject, Table
    from .bias import Bias
    from .bilinear import bilinear_spectrum
    from .copying import copying_score
    from .extraction import Extraction
    from .features import feature_directions
    from .flow import Flow
    from .head_spaces import head_spaces
    from .identity import extraction_map
    from .knock_out import knocked_out
    from .label_flip import LabelFlip
    from .linear import principal_angles, principal_components
    from .periodic import Periodic
    from .reading import read_chunks
    from .regression import fit_period, spectrum
    from .retrieval import auroc
    from .self_correction import SelfCorrection
    from .signals import Signals
    from .steering import Steering
    from .subspaces import Subspaces
    from .tower_reading import read_towers, towers_of
    from .towers import TowersAnalysis
    from .value_outputs import read_outputs

_HOME = {
    "Analysis": "base",
    "Attribution": "attribution",
    "Bias": "bias",
    "Extraction": "extraction",
    "Findings": "base",
    "Flow": "flow",
    "LabelFlip": "label_flip",
    "NotApplicable": "base",
    "Periodic": "periodic",
    "Picture": "base",
    "SelfCorrection": "self_correction",
    "Signals": "signals",
    "Steering": "steering",
    "Subject": "base",
    "Subspaces": "subspaces",
    "Table": "base",
    "TowersAnalysis": "towers",
    "auroc": "retrieval",
    "bilinear_spectrum": "bilinear",
    "copying_score": "copying",
    "extraction_map": "identity",
    "feature_directions": "features",
    "fit_period": "regression",
    "head_spaces": "head_spaces",
    "knocked_out": "knock_out",
    "principal_angles": "linear",
    "principal_components": "linear",
    "read_chunks": "reading",
    "read_outputs": "value_outputs",
    "read_towers": "tower_reading",
    "spectrum": "regression",
    "towers_of": "tower_reading",
}

__all__ = [
    "Analysis",
    "Attribution",
    "Bias",
    "Extraction",
    "Findings",
    "Flow",
    "LabelFlip",
    "NotApplicable",
    "Periodic",
    "Picture",
    "SelfCorrection",
    "Signals",
    "Steering",
    "Subject",
    "Subspaces",
    "Table",
    "TowersAnalysis",
    "auroc",
    "bilinear_spectrum",
    "copying_score",
    "extraction_map",
    "feature_directions",
    "fit_period",
    "head_spaces",
    "knocked_out",
    "principal_angles",
    "principal_components",
    "read_chunks",
    "read_outputs",
    "read_towers",
    "spectrum",
    "towers_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
