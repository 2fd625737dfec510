"""Everything that `attribution.py` has measured, as its tables, pictures and sentences take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .attribution_classes import ClassScores, CurvePoint
from .attribution_data import Explained
from .attribution_read import PromptScores
from .attribution_sources import Sources
from .attribution_text import Texts
from .base import Subject
from .resampling import Resamples
from .score_comparison import NOTHING, Ablated

if TYPE_CHECKING:
    from .attribution import Attribution

STRIPS = 6
"""Prompts whose source positions are shown."""


@dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
        options: the analysis.
        subject: what is analysed.
        explained: the prompts.
        scores: scores of layers, heads and neurons, prompt by prompt.
        overall: ranked heads and neurons over all prompts.
        classes: the same class by class.
        sources: the chosen heads by source token.
        texts: what components promote and suppress.
        compared: outcomes with the best neurons by each score zeroed; empty where not asked for.
        curve: outcomes with more and more components zeroed; empty where not asked for.
    """

    options: Attribution
    subject: Subject
    explained: Explained
    scores: PromptScores
    overall: ClassScores
    classes: tuple[ClassScores, ...]
    sources: Sources
    texts: Texts
    compared: Mapping[str, Ablated]
    curve: tuple[CurvePoint, ...]

    @property
    def count(self) -> int:
        """Number of prompts that are explained."""
        return len(self.explained.batch)

    @cached_property
    def draws(self) -> Resamples:
        """Resamples of the prompts."""
        return Resamples(self.count, self.subject.seed)

    @cached_property
    def compared_draws(self) -> Resamples | None:
        """Resamples of the prompts that scores are compared on, None where they are not."""
        if not self.compared:
            return None
        return Resamples(len(self.compared[NOTHING].log_probability_N), self.subject.seed)

    @cached_property
    def rows(self) -> list[int]:
        """Prompts whose source tokens are shown, the classes taking turns."""
        queues = [list(one.rows) for one in self.classes] or [list(range(self.count))]
        turns = [q[i] for i in range(max(map(len, queues))) for q in queues if i < len(q)]
        return [int(row) for row in turns[:STRIPS]]
