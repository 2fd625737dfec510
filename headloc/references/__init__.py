"""What the papers report, as data: published figures that a run is compared with.

Importing this package loads nothing heavy, and no file before it is asked for.
"""

from __future__ import annotations

from headloc.references.comparison import Comparison, ComparisonRow, HeadOverlap, compare
from headloc.references.library import load_reference, reference_names
from headloc.references.reading import parse_reference
from headloc.references.reference import Quantity, Reference
from headloc.references.refined import refinement_metrics

__all__ = [
    "Comparison",
    "ComparisonRow",
    "HeadOverlap",
    "Quantity",
    "Reference",
    "compare",
    "load_reference",
    "parse_reference",
    "reference_names",
    "refinement_metrics",
]
