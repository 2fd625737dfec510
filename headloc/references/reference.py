"""Published figures of one experiment, as value objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headloc.heads import HeadId

ReadAs = Literal["seen", "digest"]
"""How a figure was read: in the primary source, or in a secondary summary."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure of a paper.

    Attributes:
        name: what it is, in the words of the tables.
        metric: key of the flat metric that a run measures it by; None where headloc has none yet.
        low: the published figure, or the lower end of a published range; None where there is none.
        high: the upper end of the range, equal to `low` for a single figure.
        meaning: what the figure says, and on what it was measured.
        section: the part of the paper that it stands in.
        read: how it was read.
    """

    name: str
    metric: str | None
    low: float | None
    high: float | None
    meaning: str
    section: str
    read: ReadAs | None

    @property
    def published(self) -> str:
        """The figure or range as text, empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Reference:
    """What a paper reports for one experiment.

    Attributes:
        experiment: name of the experiment in conf/experiment.
        paper: authors, year and title.
        arxiv: number of the preprint.
        model: id of the model that the figures belong to.
        published: False for runs on models of headloc's own, for which nothing is published.
        quantities: the figures.
        main_heads: heads that the paper names, zero-based; may be empty.
        heads_section: the part of the paper that they stand in.
        note: what else has to be known to compare.
    """

    experiment: str
    paper: str
    arxiv: str
    model: str
    published: bool
    quantities: tuple[Quantity, ...]
    main_heads: tuple[HeadId, ...] = ()
    heads_section: str = ""
    note: str = ""
