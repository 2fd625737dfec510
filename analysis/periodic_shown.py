"""Tables and sentences of `periodic.py`.

Shapes: K numbers, F frequencies, r coordinates, q quadratures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from . import periodic_picture as picture
from .base import Findings, Picture, Table
from .periodic_values import BEST, BEYOND, LEVEL, WORST, Array, HeadPeriods, Reading

MOST_HEADS = 12
"""Heads that are drawn; the tables have all."""

FEW = 8


def findings(
    heads: Sequence[HeadPeriods],
    k_K: Array,
    telling: Collection[str],
    *,
    dimensions: int,
    permutations: int,
    prompts: int,
) -> Findings:
    """Put everything together; heads that tell tasks apart are drawn first."""
    drawn = sorted(heads, key=lambda head: head.head not in telling)[:MOST_HEADS]
    return Findings(
        _scalars(heads),
        (
            Table("periods", ("head", "period", "control", "target", "phase", "r2", "low", "high",
                              "null_median", "null_95", "p", "q", "left_out", "left_out_low",
                              "left_out_high", "left_out_null_95"),
                  [_row(head.head, row) for head in heads for row in head.rows],
                  f"R^2 of cos(2 pi k / period + phase) on {dimensions} coordinates of the "
                  f"{len(k_K)} task means: both quadratures, the phases where it is largest and "
                  "smallest, and the largest with a cubic in k taken out of both sides; 95 % "
                  f"interval over the {prompts} prompts behind every mean; for numbers left out of "
                  f"the fit; null of {permutations} permutations of k; q after Benjamini-Hochberg "
                  "over all heads and periods of a target."),
            Table("trends", ("head", "degree", "share"),
                  [[h.head, i + 1, share] for h in heads for i, share in enumerate(h.trends)],
                  "Share of the variance between task means that a polynomial in k explains."),
            Table("spectrum", ("head", "frequency", "period", "power", "limit", "power_detrended",
                               "limit_detrended"), _spectrum_rows(heads),
                  "Share of the variance between task means at every frequency; limit: 95th "
                  "percentile of the largest power over all frequencies with k shuffled."),
        ),
        (
            Picture("periods", "R^2 at the best phase (dot, 95 % interval), for numbers left "
                    "out (cross), and beyond a cubic in k (triangle); grey: 95th percentile with k "
                    "shuffled. Heads that tell tasks apart come first.",
                    partial(picture.draw_periods, drawn)),
            Picture("spectrum", "Share of the variance at every period, the linear trend in k "
                    "taken out (full) and as it is (thin); dashed: 95 % limit of shuffled k.",
                    partial(picture.draw_spectra, drawn)),
            Picture("circles_digit", "Feature circles: cos and sin of each number, predicted from "
                    "the coordinates by a fit on the other numbers; colour: unit digit. Points far "
                    "off stand on the edge.",
                    partial(picture.draw_circles, drawn, k_K, "digit")),
            Picture("circles_magnitude", "The same circles; colour: the number.",
                    partial(picture.draw_circles, drawn, k_K, "magnitude")),
            Picture("components", "The task means along their first principal components; colour: "
                    "the number.", partial(picture.draw_components, drawn, k_K)),
        ),
        _sentences(
            [head for head in heads if head.head in telling] or heads, k_K, permutations
        ),
    )  # fmt: skip


def _row(head: str, row: Reading) -> list[Any]:
    held = row.left_out
    rest = [None] * 4 if held is None else [held.r2, held.low, held.high, held.null_95]
    return [head, row.period, row.control, row.target, row.phase, row.r2, row.low, row.high,
            row.null_median, row.null_95, row.p, row.q, *rest]  # fmt: skip


def _spectrum_rows(heads: Sequence[HeadPeriods]) -> list[list[Any]]:
    return [
        [h.head, float(f), float(1 / f), float(a), h.spectrum.limit, float(b),
         h.spectrum.detrended_limit]
        for h in heads
        for f, a, b in zip(h.spectrum.frequencies_F, h.spectrum.power_F, h.spectrum.detrended_F,
                           strict=True)
    ]  # fmt: skip


def _scalars(heads: Sequence[HeadPeriods]) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for head in heads:
        for row in head.rows:
            key = f"{head.head}/r2/{row.period:.4g}/{row.target.replace(' ', '_')}"
            scalars[key] = row.r2
            scalars |= {f"{key}/low": row.low, f"{key}/high": row.high, f"{key}/q": row.q,
                        f"{key}/null_95": row.null_95}  # fmt: skip
            if row.left_out is not None:
                scalars[f"{key}/left_out"] = row.left_out.r2
                scalars[f"{key}/left_out/low"] = row.left_out.low
                scalars[f"{key}/left_out/high"] = row.left_out.high
        for degree, share in enumerate(head.trends, start=1):
            scalars[f"{head.head}/trend/{degree}"] = share
    return scalars


def _sentences(heads: Sequence[HeadPeriods], k_K: Array, permutations: int) -> tuple[str, ...]:
    span = float(k_K.max() - k_K.min()) + 1
    groups = {
        f"Periods that come round twice within the {span:.0f} numbers":
            lambda row: not row.control and row.period <= span / 2,
        "Longer periods": lambda row: not row.control and row.period > span / 2,
        "Control periods": lambda row: row.control,
    }  # fmt: skip
    said = [
        f"{name} ({_periods(rows)}): {sum(row.beyond_chance for _, row in rows)} of {len(rows)} "
        f"readings of heads that tell tasks apart are beyond chance ({permutations} permutations, "
        f"q <= {LEVEL}) and predict numbers left out{_named(rows)}; beyond a cubic in k "
        f"{sum(row.beyond_chance for _, row in curved)} of {len(curved)}.{_size(heads, rows)}"
        for name, wanted in groups.items()
        if (rows := _of(heads, BEST, wanted)) and (curved := _of(heads, BEYOND, wanted))
    ]
    circles = [
        (head, best, worst)
        for head in heads
        for best, worst in zip(head.of(BEST), head.of(WORST), strict=True)
        if best.beyond_chance and worst.r2 > worst.null_95
    ]
    if circles:
        head, best, worst = max(circles, key=lambda found: found[2].r2)
        said.append(
            f"The clearest circle has period {best.period:.4g} in {head.head}: R^2 {best.r2:.3f} "
            f"[{best.low:.3f}, {best.high:.3f}] at the best phase and {worst.r2:.3f} "
            f"[{worst.low:.3f}, {worst.high:.3f}] at the worst."
        )
    peaks = [(head.head, *peak) for head in heads for peak in head.spectrum.peaks()[:1]]
    if peaks:
        found = ", ".join(f"{head} {period:.3g} ({power:.0%})" for head, period, power in peaks[:8])
        said.append(f"Strongest periods of the free spectrum, linear trend taken out: {found}.")
    else:
        said.append("The free spectrum has no peak beyond what shuffled numbers give.")
    trends = [head.trends for head in heads]
    said.append(
        f"A straight line in k explains {min(t[0] for t in trends):.0%} to "
        f"{max(t[0] for t in trends):.0%} of the variance between task means, a cubic "
        f"{min(t[2] for t in trends):.0%} to {max(t[2] for t in trends):.0%}."
    )
    if max((peak[1] for peak in peaks), default=0.0) > span / 2:
        said.append(
            f"The numbers span {span:.0f}: a period longer than {span / 2:.0f} does not come round "
            "twice, so the numbers show an arc or one turn of a circle, not that the code repeats."
        )
    return tuple(said)


def _of(
    heads: Sequence[HeadPeriods], target: str, wanted: Callable[[Reading], bool]
) -> list[tuple[str, Reading]]:
    return [(head.head, row) for head in heads for row in head.of(target) if wanted(row)]


def _periods(rows: Sequence[tuple[str, Reading]]) -> str:
    return ", ".join(f"{period:.3g}" for period in sorted({row.period for _, row in rows}))


def _size(heads: Sequence[HeadPeriods], rows: Sequence[tuple[str, Reading]]) -> str:
    """Tell how large the waves are that were found: R^2 does not care."""
    spectra = {head.head: head.spectrum for head in heads}
    shares = [spectra[head].share(row.period) for head, row in rows if row.beyond_chance]
    if not shares:
        return ""
    return f" These waves hold {min(shares):.1%} to {max(shares):.1%} of the variance of a head."


def _named(rows: Sequence[tuple[str, Reading]]) -> str:
    """Name the heads by period, if they are few."""
    hits = [(row.period, head) for head, row in rows if row.beyond_chance]
    if not 0 < len(hits) <= FEW:
        return ""
    return " (" + ", ".join(f"{period:.3g} in {head}" for period, head in sorted(hits)) + ")"
