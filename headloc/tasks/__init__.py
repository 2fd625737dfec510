"""Few-shot tasks: families of tasks, the examples they draw, and prompts whose tokens are known.

Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from headloc.tasks.add_k import AddK
from headloc.tasks.arithmetic import Arithmetic
from headloc.tasks.checks import Items
from headloc.tasks.encoding import Encoded, TokenSpan, encode, encode_all
from headloc.tasks.example import Demonstration, Example
from headloc.tasks.facts import Facts
from headloc.tasks.family import Split, TaskFamily
from headloc.tasks.labels import Labels
from headloc.tasks.multiply_k import MultiplyK
from headloc.tasks.pairs import Pairs
from headloc.tasks.prompts import Prompts
from headloc.tasks.registry import build_task, family_names, option_names, rebuild_task
from headloc.tasks.subtract_k import SubtractK
from headloc.tasks.template import (
    TEMPLATES,
    Rendered,
    Span,
    SpanKind,
    Template,
    render,
    resolve_template,
)

__all__ = [
    "TEMPLATES",
    "AddK",
    "Arithmetic",
    "Demonstration",
    "Encoded",
    "Example",
    "Facts",
    "Items",
    "Labels",
    "MultiplyK",
    "Pairs",
    "Prompts",
    "Rendered",
    "Span",
    "SpanKind",
    "Split",
    "SubtractK",
    "TaskFamily",
    "Template",
    "TokenSpan",
    "build_task",
    "encode",
    "encode_all",
    "family_names",
    "option_names",
    "rebuild_task",
    "render",
    "resolve_template",
]
