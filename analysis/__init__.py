"""Analyses of a circuit, one file per question (imported as `headloc.analysis`).

`base.py` holds the interface and tells how to write one.  Everything is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Analysis, Findings, NotApplicable, Picture, Subject, Table

_HOME = {
    "Analysis": "base",
    "Findings": "base",
    "NotApplicable": "base",
    "Picture": "base",
    "Subject": "base",
    "Table": "base",
}

__all__ = ["Analysis", "Findings", "NotApplicable", "Picture", "Subject", "Table"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
