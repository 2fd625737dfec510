"""Tables and sentences of `subspaces.py`.

Shapes: S random sets, N prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate, mean_interval

from . import subspaces_picture as picture
from .base import Findings, Picture, Table
from .head_spaces import RELIABLE


@dataclass(frozen=True, slots=True)
class Arm:
    """The circuit's heads edited: kind, dimensions r, split, and outcomes_SN of S sets."""

    kind: str
    size: int | None
    split: str
    outcomes_SN: NDArray[np.bool_]

    def accuracy(self, seed: int) -> Estimate:
        """Return the accuracy with its interval over prompts, averaged over the sets."""
        return mean_interval(self.outcomes_SN.mean(0), seed)


@dataclass(frozen=True, slots=True)
class HeadSummary:
    """Figures of one head's subspace; angles in degrees, between the halves of the data."""

    head: str
    dimensions: int
    by_half: tuple[int, int]
    share: float
    participation: float
    reliability: float
    angle_mean: float
    angle_largest: float
    overlap_of_halves: float


@dataclass(frozen=True, slots=True)
class PairSummary:
    """Two heads' subspaces: principal angles in degrees, overlap, and that of random ones."""

    head: str
    other: str
    angle_smallest: float
    angle_mean: float
    overlap: float
    overlap_random: float
    overlap_random_95: float


@dataclass(frozen=True, slots=True)
class IdentityCheck:
    """Both sides of the identity, and what the inputs' part inside or outside the subspace gives.

    Gaps are the largest over prompts and coordinates, relative to the largest coordinate: of the
    identity itself, with the inputs projected onto the extraction subspace, and of what is left
    with that subspace removed.
    """

    head: str
    extraction_dimensions: int
    gap: float
    gap_projected: float
    left_removed: float


def findings(
    *,
    heads: Sequence[HeadSummary],
    spectra: Mapping[str, NDArray[np.float64]],
    pairs: Sequence[PairSummary],
    edited: Sequence[str],
    arms: Sequence[Arm],
    identity: Sequence[IdentityCheck],
    size: int,
    seed: int,
) -> Findings:
    """Put everything together."""
    spectrum: list[list[Any]] = [
        [h, i + 1, float(s)] for h, shares in spectra.items() for i, s in enumerate(shares)
    ]
    return Findings(
        _scalars(heads, pairs, arms, identity, seed),
        (
            Table("heads", ("head", "dimensions_95", "dimensions_95_first_half",
                            "dimensions_95_second_half", "share", "participation_ratio",
                            "reliability", "angle_mean", "angle_largest"), _head_rows(heads),
                  f"Dimensions to 95 % of the variance between task means; share of the first "
                  f"{size}; correlation of the task means of two halves of the data, and the "
                  "principal angles between their subspaces of that many dimensions."),
            Table("spectrum", ("head", "component", "share"), spectrum,
                  "Share of the variance between task means per principal component."),
            _table("pairs", PairSummary, pairs, "Subspaces of two heads: principal angles in "
                   "degrees, and mean squared cosine beside random subspaces of the same heads."),
            Table("causal", ("split", "kind", "dimensions", "accuracy", "low", "high", "n", "sets",
                             "smallest", "largest"), [_arm_row(arm, seed) for arm in arms],
                  f"Accuracy with {_named(edited)} projected onto r dimensions around their mean, "
                  "or with these at their mean, at the last token of few-shot prompts."),
            _table("identity", IdentityCheck, identity, "The identity between aggregated and "
                   "extracted coordinates, relative to the largest coordinate."),
        ),
        (
            Picture("spectrum", "Cumulative share of the variance between task means: heads that "
                    "tell tasks apart, and others (grey), whose means differ by the prompts at "
                    "hand.", partial(picture.draw_spectrum, heads, spectra, size)),
            Picture("causal", f"Accuracy with {_named(edited)} projected onto r dimensions each; "
                    "the bands are the 95 % interval and the range of the random sets.",
                    partial(picture.draw_arms, arms, seed)),
            Picture("overlap", "Overlap of the heads' subspaces: mean squared cosine of the "
                    "principal angles. On the diagonal: the two halves of the data.",
                    partial(picture.draw_overlaps, heads, pairs)),
        ),
        _sentences(heads, pairs, edited, arms, identity, size, seed),
    )  # fmt: skip


def _table(name: str, kind: type, rows: Sequence[Any], caption: str) -> Table:
    columns = tuple(field.name for field in fields(kind))
    return Table(name, columns, [list(asdict(row).values()) for row in rows], caption)


def _head_rows(heads: Sequence[HeadSummary]) -> list[list[Any]]:
    return [
        [h.head, h.dimensions, *h.by_half, h.share, h.participation, h.reliability, h.angle_mean,
         h.angle_largest]
        for h in heads
    ]  # fmt: skip


def _arm_row(arm: Arm, seed: int) -> list[Any]:
    found, each_S = arm.accuracy(seed), arm.outcomes_SN.mean(1)
    return [
        arm.split, arm.kind, arm.size, found.value, found.low, found.high, found.n, len(each_S),
        float(each_S.min()), float(each_S.max()),
    ]  # fmt: skip


def _scalars(
    heads: Sequence[HeadSummary],
    pairs: Sequence[PairSummary],
    arms: Sequence[Arm],
    identity: Sequence[IdentityCheck],
    seed: int,
) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for arm in arms:
        size = "" if arm.size is None else f"/{arm.size}"
        scalars |= arm.accuracy(seed).to_metrics(f"{arm.split}/accuracy/{arm.kind}{size}")
    for split in dict.fromkeys(arm.split for arm in arms):
        least = kept_dimensions(arms, split)
        scalars[f"{split}/dimensions_kept_95"] = math.nan if least is None else least
    for head in heads:
        scalars[f"{head.head}/dimensions_95"] = head.dimensions
        scalars[f"{head.head}/share"] = head.share
        scalars[f"{head.head}/reliability"] = head.reliability
        scalars[f"{head.head}/angle_between_halves"] = head.angle_largest
    if pairs:
        scalars["overlap/mean"] = float(np.mean([pair.overlap for pair in pairs]))
        scalars["overlap/random"] = float(np.mean([pair.overlap_random for pair in pairs]))
    if identity:
        scalars["identity/gap"] = max(check.gap for check in identity)
    return scalars


def _named(heads: Sequence[str]) -> str:
    return f"the head {heads[0]}" if len(heads) == 1 else f"the heads {', '.join(heads)}"


def kept_dimensions(arms: Sequence[Arm], split: str, share: float = 0.95) -> int | None:
    """Return the fewest dimensions that keep a share of the untouched accuracy, None if none do."""
    mean = {(arm.kind, arm.size): float(arm.outcomes_SN.mean()) for arm in arms
            if arm.split == split}  # fmt: skip
    enough = [size for (kind, size), value in mean.items()
              if kind == "components" and size is not None
              and value >= share * mean["full", None]]  # fmt: skip
    return min(enough, default=None)


def _sentences(
    heads: Sequence[HeadSummary],
    pairs: Sequence[PairSummary],
    edited: Sequence[str],
    arms: Sequence[Arm],
    identity: Sequence[IdentityCheck],
    size: int,
    seed: int,
) -> tuple[str, ...]:
    apart = [head for head in heads if head.reliability >= RELIABLE]
    said = [
        f"{len(apart)} of {len(heads)} heads tell tasks apart reliably: the differences between "
        f"their task means repeat in other prompts with a correlation of {RELIABLE} or more"
        + (f" ({', '.join(head.head for head in apart)})." if apart else ".")
    ]
    if apart:
        said.append(
            f"These need {_range([head.dimensions for head in apart])} dimensions for 95 % of the "
            f"variance between task means; two halves of the data agree on them up to "
            f"{_range([round(head.angle_largest) for head in apart])} degrees."
        )
    for split in dict.fromkeys(arm.split for arm in arms):
        own = {(arm.kind, arm.size): arm.accuracy(seed) for arm in arms if arm.split == split}
        said.append(
            f"{picture.SPLIT_NAMES[split].capitalize()}, n = {own['full', None].n}: accuracy "
            f"{own['full', None]} as it is; {own['components', size]} with {len(edited)} heads "
            f"projected onto {size} components each, {own['random', size]} onto {size} random "
            f"dimensions; {own['without', size]} with these components at their mean, "
            f"{own['without_random', size]} with as many random ones. " + _fewest(arms, split, own)
        )
    if pairs:
        above = sum(pair.overlap > pair.overlap_random_95 for pair in pairs)
        said.append(
            f"{above} of {len(pairs)} pairs of heads share more of their subspaces than 95 % of "
            "random subspaces of the same heads do."
        )
    if identity:
        said.append(
            "The aggregated coordinate equals the attention-weighted sum of extracted ones to "
            f"{max(check.gap for check in identity):.1g} of its size in the model's own precision; "
            "inputs projected onto the extraction subspace change it by "
            f"{max(check.gap_projected for check in identity):.1g}, without that subspace "
            f"{max(check.left_removed for check in identity):.1g} of it is left."
        )
    return tuple(said)


def _fewest(arms: Sequence[Arm], split: str, own: Mapping[tuple[str, int | None], Estimate]) -> str:
    least = kept_dimensions(arms, split)
    if least is None:
        return "No size that was tried keeps 95 % of the accuracy."
    return f"{least} components are the fewest to keep 95 % of it: {own['components', least]}."


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
