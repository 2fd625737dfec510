"""Published beside measured: what agrees, what differs, and what is missing on either side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from headloc.heads import HeadId
from headloc.references.reference import Quantity, Reference

NOT_APPLICABLE = "not applicable"
MISSING = "missing"
UNMEASURED = "not measured by this run"
REFINED = "refinement/"
"""First part of the metrics that a refinement measures (`references/refined.py`)."""


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One figure, published and measured.

    Attributes:
        quantity: what it is.
        published: the published figure or range as text, `missing` or `not applicable`.
        measured: the run's figure, None where the run did not measure it.
        low: lower end of its 95 % interval.
        high: upper end.
        n: number of prompts behind it.
        note: how the two compare, or why they cannot be compared.
        meaning: what the figure says.
        source: part of the paper and how the figure was read.
        metric: key of the run's metric.
    """

    quantity: str
    published: str
    measured: float | None
    low: float | None
    high: float | None
    note: str
    n: int | None = None
    meaning: str = ""
    source: str = ""
    metric: str | None = None

    @property
    def interval(self) -> str:
        """The measured interval as text, empty where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"[{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True)
class HeadOverlap:
    """How the published heads stand in the measured ranking.

    Attributes:
        published: heads that the paper names.
        selected: those of them that the run selected.
        ranks: rank of each published head by the run's score, 1 the highest; None where unknown.
        selected_in_all: heads that the run selected.
        total: heads of the model.
    """

    published: tuple[HeadId, ...]
    selected: tuple[HeadId, ...]
    ranks: tuple[int | None, ...]
    selected_in_all: int
    total: int

    @property
    def expected_by_chance(self) -> float:
        """Published heads that as many heads drawn at random would hold on average."""
        return len(self.published) * self.selected_in_all / self.total


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run beside the published figures.

    Attributes:
        reference: what was published.
        model: name of the model that was run.
        comparable: whether it is the model of the paper.
        rows: one per quantity.
        heads: how the published heads stand; None where that is not applicable.
        changes: settings that were changed from the experiment.
    """

    reference: Reference
    model: str
    comparable: bool
    rows: tuple[ComparisonRow, ...]
    heads: HeadOverlap | None
    changes: tuple[str, ...] = ()


def compare(
    reference: Reference,
    metrics: Mapping[str, float],
    *,
    model: str,
    selected: Collection[HeadId] = (),
    ranking: Sequence[HeadId] = (),
    changes: Sequence[str] = (),
    unrefined: str = UNMEASURED,
) -> Comparison:
    """Put a run beside a reference.

    Args:
        reference: what was published.
        metrics: flat figures of the run, intervals as KEY/low and KEY/high.
        model: name of the model that was run; a folder counts by its last name.
        selected: heads that the run selected.
        ranking: all heads of the model by falling score.
        changes: settings that were changed from the experiment.
        unrefined: what to say of figures of a refinement that are not among the metrics.
    """
    same = reference.published and _same_model(model, reference.model)
    rows = tuple(
        _row(quantity, metrics, reference, same, unrefined) for quantity in reference.quantities
    )
    heads = None
    if same and reference.main_heads and ranking:
        heads = _overlap(reference.main_heads, selected, ranking)
    return Comparison(reference, model, same, rows, heads, tuple(changes))


def _same_model(run: str, published: str) -> bool:
    """Whether a hub id, or a folder by its last name, is the paper's model."""
    return run == published or run.rstrip("/").rpartition("/")[2] == published.rpartition("/")[2]


def _row(
    quantity: Quantity,
    metrics: Mapping[str, float],
    reference: Reference,
    same: bool,
    unrefined: str,
) -> ComparisonRow:
    key = quantity.metric
    found = None if key is None else metrics.get(key)
    size = metrics.get(f"{key}/n")
    note = _note(quantity, metrics, reference, same)
    if found is None:
        note = unrefined if (key or "").startswith(REFINED) else UNMEASURED
    return ComparisonRow(
        quantity=quantity.name,
        published=_published(quantity, reference),
        measured=found,
        low=None if found is None else metrics.get(f"{key}/low"),
        high=None if found is None else metrics.get(f"{key}/high"),
        note=note,
        n=None if size is None else int(size),
        meaning=quantity.meaning,
        source=quantity.section + (f", {quantity.read}" if quantity.read else ""),
        metric=key,
    )


def _published(quantity: Quantity, reference: Reference) -> str:
    return quantity.published or (MISSING if reference.published else NOT_APPLICABLE)


def _note(
    quantity: Quantity, metrics: Mapping[str, float], reference: Reference, same: bool
) -> str:
    if not reference.published or quantity.metric not in metrics:
        return ""
    if not same:
        return f"published for {reference.model}"
    return _distance(quantity, metrics)


def _distance(quantity: Quantity, metrics: Mapping[str, float]) -> str:
    """Say whether the published range meets the measured interval, and how far off it is."""
    key = quantity.metric or ""
    low, high = quantity.low, quantity.high
    if low is None or high is None:
        return "no published figure"
    value = metrics[key]
    if f"{key}/low" in metrics and f"{key}/high" in metrics:
        if metrics[f"{key}/low"] <= high and low <= metrics[f"{key}/high"]:
            return "within the measured interval"
    elif low <= value <= high:
        return "as published"
    gap = value - high if value > high else value - low
    return f"{abs(gap):.3g} {'above' if gap > 0 else 'below'} the published figure"


def _overlap(
    published: tuple[HeadId, ...], selected: Collection[HeadId], ranking: Sequence[HeadId]
) -> HeadOverlap:
    place = {head: rank for rank, head in enumerate(ranking, start=1)}
    chosen = set(selected)
    return HeadOverlap(
        published=published,
        selected=tuple(head for head in published if head in chosen),
        ranks=tuple(place.get(head) for head in published),
        selected_in_all=len(chosen),
        total=len(ranking),
    )
