"""Does a head extract named features from single demonstrations?

A feature cos(2 pi k / T + theta) has a direction u in a head's output, fitted on task means
(`features.py`).  Along W^T u the head reads it from the label token of one demonstration, before
any attention:

    f_i = <u, s_i> = <W^T u, n_{y_i}>  (+ the value bias)

In prompts whose demonstrations all use offsets of their own, f_i is correlated with the feature of
the offset that demonstration i shows.  Nothing is fitted on these prompts.

Shapes: P prompts, N demonstrations, K numbers, r dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from headloc.evaluation.intervals import Estimate

from .base import Findings, Table
from .demonstrations import HeadSignals
from .features import GROUPS, Feature, group_features
from .head_spaces import HeadSpace
from .regression import target
from .resampling import Resamples

Array = NDArray[np.float64]


def read_feature(signal_PNr: Array, feature: Feature) -> Array:
    """Return what each demonstration says of a feature, up to a constant, f_PN."""
    return signal_PNr @ feature.weight_r.numpy()


def correlation(read_PN: Array, shown_PN: Array, resamples: Resamples) -> Estimate:
    """Return the correlation of what is read with what is shown, over all demonstrations.

    Positions are centred one by one; the demonstrations of a prompt are resampled together.
    """
    a_PN, b_PN = read_PN - read_PN.mean(0), shown_PN - shown_PN.mean(0)
    return resamples.of(
        lambda ab, aa, bb: ab / np.sqrt(np.maximum(aa * bb, 1e-300)),
        (a_PN * b_PN).mean(1),
        (a_PN**2).mean(1),
        (b_PN**2).mean(1),
    )


def feature_findings(
    spaces: Sequence[HeadSpace],
    signals: Sequence[HeadSignals],
    shown_PN: NDArray[np.int64],
    k_K: Tensor,
    size: int,
    seed: int,
) -> Findings:
    """Correlate what heads read along their features' directions with what is shown.

    Args:
        spaces: the heads.
        signals: what they read in prompts with mixed offsets.
        shown_PN: row of the number that each demonstration uses.
        k_K: the number of every row.
        size: dimensions r.
        seed: seed of the resamples.
    """
    resamples = Resamples(len(shown_PN), seed)
    rows: list[list[Any]] = []
    scalars: dict[str, float] = {}
    by_group: dict[str, list[float]] = {}
    for space, one in zip(spaces, signals, strict=True):
        for group in GROUPS:
            for feature in group_features(space, k_K, size, group):
                wave_K = target(k_K, feature.period, feature.phase).numpy()
                e = correlation(read_feature(one.signal_PNr, feature), wave_K[shown_PN], resamples)
                rows.append([str(space.head), group, feature.period, feature.phase, e.value, e.low,
                             e.high, e.n])  # fmt: skip
                degrees = round(np.rad2deg(feature.phase)) % 360
                key = f"{space.head}/extracted/{group}/{feature.period:.3g}_{degrees}"
                scalars |= e.to_metrics(key.replace(" ", "_"))
                by_group.setdefault(group, []).append(e.value)
    told = ", ".join(
        f"{group} {min(values):.2f} to {max(values):.2f}" for group, values in by_group.items()
    )
    return Findings(
        scalars,
        (
            Table("features", ("head", "group", "period", "phase", "correlation", "low", "high",
                               "n"), rows,
                  "Correlation between what a label token says along the extraction direction of a "
                  "feature of k, and that feature of the offset shown, in prompts with mixed "
                  "offsets. Directions are fitted on task means."),
        ),
        (),
        (f"Along the extraction directions of named features, single label tokens tell the "
         f"feature of their own offset with a correlation of: {told} (by head and feature, "
         f"n = {len(shown_PN)} prompts).",),
    )  # fmt: skip
