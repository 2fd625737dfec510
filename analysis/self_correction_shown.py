"""Tables and sentences of `self_correction.py`.

Shapes: n shuffles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate
from headloc.refinement.significance import benjamini_hochberg

from . import self_correction_picture as picture
from .base import Findings, Picture, Table
from .pairing import Pairing
from .self_correction_picture import ALL_HEADS, RIGHT, WRONG

Array = NDArray[np.float64]

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Company:
    """How the signals of demonstrations that stand together go together.

    Attributes:
        head: the head, or all heads.
        shots: number of demonstrations n.
        plain: statistics of a, attention-free.
        weighted: statistics of b = alpha a, or None.
        steady: the same with every a at its mean: competition for attention alone.
        null_correlation: mean correlation_n of a, demonstrations shuffled across prompts.
        null_cancellation: the same of the cancellation ratio.
        q: p after Benjamini-Hochberg over all heads and numbers of demonstrations.
    """

    head: str
    shots: int
    plain: Pairing
    weighted: Pairing | None
    steady: Pairing | None
    null_correlation: Array
    null_cancellation: Array
    q: float = math.nan

    @property
    def null_interval(self) -> tuple[float, float]:
        """The central 95 % of the shuffled correlations."""
        low, high = np.percentile(self.null_correlation, (2.5, 97.5))
        return float(low), float(high)

    @property
    def p(self) -> float:
        """One-sided p-value: how often shuffling gives so negative a correlation."""
        below = (self.null_correlation <= self.plain.correlation.value).sum()
        return float((1 + below) / (1 + len(self.null_correlation)))

    @property
    def verdict(self) -> str:
        """What the correlations say; the intervention has the last word.

        cancelling: attention-free signals are anticorrelated beyond shuffling.  competition: only
        the weighted ones are.  none: neither.
        """
        chance = self.p if math.isnan(self.q) else self.q
        if self.plain.correlation.high < 0 and chance <= LEVEL:
            return "cancelling"
        if self.weighted is not None and self.weighted.correlation.high < 0:
            return "competition"
        return "none"


@dataclass(frozen=True, slots=True)
class Correction:
    """kappa_ij of one head for one corrupted demonstration.

    Attributes:
        head: the head, or all heads.
        kind: wrong label, or other right one (the control).
        shots: number of demonstrations.
        corrupted: i, from 0.
        kappa: along the task's direction, for every j.
        kappa_subspace: over the whole subspace.
        net: the sum of the latter over all later demonstrations; None for the last one.
        by_order: kappa in each order of the demonstrations.
        earlier_moved: largest change of an earlier signal, relative to the corrupted one's.
    """

    head: str
    kind: str
    shots: int
    corrupted: int
    kappa: tuple[Estimate, ...]
    kappa_subspace: tuple[Estimate, ...]
    net: Estimate | None
    by_order: tuple[tuple[Estimate, ...], ...]
    earlier_moved: float


def corrected(company: Sequence[Company]) -> list[Company]:
    """Add q-values: Benjamini-Hochberg over the single heads and numbers of demonstrations."""
    single = [one for one in company if one.head != ALL_HEADS]
    adjusted = iter(benjamini_hochberg([one.p for one in single]))
    return [one if one.head == ALL_HEADS else replace(one, q=next(adjusted)) for one in company]


def findings(company: Sequence[Company], corrections: Sequence[Correction], shots: int) -> Findings:
    """Put everything together."""
    heads = list(dict.fromkeys(one.head for one in company))
    return Findings(
        _scalars(company, corrections),
        (
            Table("correlations", ("head", "shots", "signals", "measure", "value", "low", "high",
                                   "n", "null_low", "null_high", "p"), _company_rows(company),
                  "Correlation of the demonstrations' signals over prompts, centred per task and "
                  "position, by lag and over all pairs; cancellation: Var(sum)/sum(Var). Null: "
                  "demonstrations shuffled across prompts. Signals: attention-free; weighted by "
                  "attention (softmax alone gives -1/(n-1)); weighted with every signal at its "
                  "mean."),
            Table("kappa", ("head", "kind", "shots", "corrupted", "read_at", "along", "kappa",
                            "low", "high", "n"), _correction_rows(corrections),
                  "Share of the change at the corrupted demonstration that another one takes back "
                  "(negative: it changes in the same direction)."),
            Table("orders", ("head", "kind", "shots", "corrupted", "order", "kappa_later", "low",
                             "high"),
                  _order_rows(corrections), "The next demonstration's share in each order of the "
                  "same demonstrations."),
            Table("verdicts", ("head", "shots", "correlation", "p", "q", "verdict"),
                  [[c.head, c.shots, c.plain.correlation.value, c.p,
                    None if math.isnan(c.q) else c.q, c.verdict] for c in company],
                  "What the correlations alone say; q after Benjamini-Hochberg over single heads "
                  "and numbers of demonstrations."),
        ),
        (
            Picture("correlations", "Mean correlation between the signals of two demonstrations: "
                    "attention-free (blue, 95 % interval) beside the shuffled null (grey), and as "
                    "the head weighs them (orange), beside what softmax alone gives (cross).",
                    partial(picture.draw_company, company)),
            Picture("kappa", f"Share of a wrong label's error that another demonstration takes "
                    f"back, over the subspace, {ALL_HEADS if ALL_HEADS in heads else heads[0]}: "
                    "wrong label, and the control.",
                    partial(picture.draw_kappa, corrections, shots)),
            Picture("kappa_heads", "The same for the next demonstration, head by head.",
                    partial(picture.draw_heads, [c for c in corrections if c.shots == shots],
                            heads)),
        ),
        _sentences(company, corrections, heads),
    )  # fmt: skip


def _company_rows(company: Sequence[Company]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for one in company:
        low, high = one.null_interval
        for name, part in (("free", one.plain), ("weighted", one.weighted),
                           ("weighted, signals at their mean", one.steady)):  # fmt: skip
            if part is None:
                continue
            free = name == "free"
            begin, e = [one.head, one.shots, name], part.correlation
            null = [low, high, one.p] if free else [None, None, None]
            rows.append([*begin, "correlation", e.value, e.low, e.high, e.n, *null])
            for lag, e in enumerate(part.by_lag, start=1):
                rows.append([*begin, f"lag {lag}", e.value, e.low, e.high, e.n, None, None, None])
            ends: list[Any] = [None, None]
            if free:
                ends = np.percentile(one.null_cancellation, (2.5, 97.5)).tolist()
            e = part.cancellation
            rows.append([*begin, "cancellation", e.value, e.low, e.high, e.n, *ends, None])
    return rows


def _correction_rows(corrections: Sequence[Correction]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for c in corrections:
        begin = [c.head, c.kind, c.shots, c.corrupted + 1]
        for along, parts in (("direction", c.kappa), ("subspace", c.kappa_subspace)):
            for j, e in enumerate(parts, start=1):
                rows.append([*begin, j, along, e.value, e.low, e.high, e.n])
        if c.net is not None:
            rows.append([*begin, "all later", "subspace", c.net.value, c.net.low, c.net.high,
                         c.net.n])  # fmt: skip
    return rows


def _order_rows(corrections: Sequence[Correction]) -> list[list[Any]]:
    rows = []
    for c in corrections:
        for order, parts in enumerate(c.by_order, start=1):
            if c.corrupted + 1 < len(parts):
                e = parts[c.corrupted + 1]
                rows.append([c.head, c.kind, c.shots, c.corrupted + 1, order, e.value, e.low,
                             e.high])  # fmt: skip
    return rows


def _scalars(company: Sequence[Company], corrections: Sequence[Correction]) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for one in company:
        key = f"{one.head.replace(' ', '_')}/{one.shots}_shots"
        scalars |= one.plain.correlation.to_metrics(f"{key}/correlation")
        scalars |= one.plain.cancellation.to_metrics(f"{key}/cancellation")
        scalars[f"{key}/correlation/p"] = one.p
        if one.weighted is not None:
            scalars |= one.weighted.correlation.to_metrics(f"{key}/weighted_correlation")
            scalars[f"{key}/softmax_alone"] = -1 / (one.shots - 1)
    for c in corrections:
        if c.corrupted == 0:
            kind = c.kind.replace(" ", "_")
            key = f"{c.head.replace(' ', '_')}/{c.shots}_shots/kappa/{kind}"
            for j, e in enumerate(c.kappa_subspace[1:], start=2):
                scalars |= e.to_metrics(f"{key}/1_{j}")
            if c.net is not None:
                scalars |= c.net.to_metrics(f"{key}/net")
    scalars["earlier_moved"] = max(c.earlier_moved for c in corrections)
    return scalars


def _kappa_sentence(corrections: Sequence[Correction], chief: str, shots: int) -> str:
    wrong, right = (
        next(
            c
            for c in corrections
            if (c.head, c.kind, c.shots, c.corrupted) == (chief, kind, shots, 0)
        )
        for kind in (WRONG, RIGHT)
    )
    if wrong.net is None or right.net is None:
        return ""
    corrects = wrong.net.low > max(0.0, right.net.high)
    return (
        f"Intervention, {shots} demonstrations, {chief}: of the change that a wrong first label "
        f"makes to its own signal, the next demonstration takes back {wrong.kappa_subspace[1]} and "
        f"all later ones together {wrong.net}; of that of another right first demonstration "
        f"{right.kappa_subspace[1]} and {right.net} (negative: they change in the same direction). "
        + ("Later demonstrations take the error back." if corrects else "That is no correction.")
    )


def _sentences(
    company: Sequence[Company], corrections: Sequence[Correction], heads: Sequence[str]
) -> tuple[str, ...]:
    said = []
    chief = ALL_HEADS if ALL_HEADS in heads else heads[0]
    for one in company:
        if one.head == chief:
            low, high = one.null_interval
            said.append(
                f"{one.shots} demonstrations, {chief}: attention-free signals correlate with "
                f"{one.plain.correlation} (shuffled {low:.3f} to {high:.3f}); their sum varies "
                f"{one.plain.cancellation} times as much as if they were independent."
            )
    single = [one for one in company if one.head != ALL_HEADS]
    told = {
        verdict: [f"{one.head} at {one.shots}" for one in single if one.verdict == verdict]
        for verdict in ("cancelling", "competition")
    }
    said.append(
        f"Head by head, of {len(single)} readings {len(told['cancelling'])} are anticorrelated "
        f"beyond shuffling (q <= {LEVEL})"
        + (f": {', '.join(told['cancelling'][:8])}" if told["cancelling"] else "")
        + f"; {len(told['competition'])} are so only once weighted by attention, as softmax makes "
        "any signals (-1/(n-1))."
    )
    for shots in dict.fromkeys(c.shots for c in corrections):
        said.append(_kappa_sentence(corrections, chief, shots))
    said.append(
        "Negative control: the signals of earlier demonstrations move by at most "
        f"{max(c.earlier_moved for c in corrections):.1g} of the change at the wrong label."
    )
    return tuple(said)
