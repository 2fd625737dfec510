"""Named features of a number k, and where a head writes and reads them.

A feature is cos(2 pi k / T + theta).  Regressed on a head's coordinates in its aggregation subspace
Q it has weights w, so that u = Q w is its direction in the head's output, and by the identity of
`identity.py` W^T u the direction along which the head extracts it from earlier tokens.  Groups of
features (Hu et al. 2025): the unit digit has periods 2, 5 and 10, the magnitude 25 and 50.

Shapes: K numbers, r dimensions of the subspace, m dimensions of a group, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .head_spaces import HeadSpace, coordinates_of
from .linear import orthonormal
from .regression import decoding_directions, fit_period

QUARTER = torch.pi / 2

GROUPS: Mapping[str, tuple[tuple[float, bool], ...]] = {
    "parity": ((2, False),),
    "unit digit": ((2, False), (5, False), (10, True)),
    "magnitude": ((25, False), (50, False)),
}
"""Periods of each feature group; True for both quadratures, False for the best phase alone."""


@dataclass(frozen=True, slots=True)
class Feature:
    """cos(2 pi k / period + phase), and the regression weights of it on r coordinates.

    Attributes:
        period: T.
        phase: theta, radians.
        weight_r: w; the feature is <w, coordinates> up to a constant.
    """

    period: float
    phase: float
    weight_r: Tensor


def group_features(space: HeadSpace, k_K: Tensor, size: int, group: str) -> list[Feature]:
    """Return the features of a group with their weights on a head's r coordinates."""
    coordinates_Kr = coordinates_of(space, size)
    wanted: list[tuple[float, float]] = []
    for period, both in GROUPS[group]:
        phase = fit_period(coordinates_Kr, k_K, period).phase
        wanted += [(period, 0.0), (period, -QUARTER)] if both else [(period, phase)]
    weights_rm = decoding_directions(coordinates_Kr, k_K, wanted)
    return [
        Feature(period, phase, weights_rm[:, index]) for index, (period, phase) in enumerate(wanted)
    ]


def feature_directions(space: HeadSpace, k_K: Tensor, size: int, group: str) -> Tensor:
    """Return the direction of every feature of a group in the head's output, u_Dm.

    `extraction_map(values, head, heads, weight_dD, u_Dm).directions_Dr` are the directions along
    which the head extracts them.
    """
    features = group_features(space, k_K, size, group)
    return space.basis(size) @ torch.stack([feature.weight_r for feature in features], dim=1)


def feature_basis(space: HeadSpace, k_K: Tensor, size: int, group: str) -> Tensor:
    """Return the subspace of a feature group within a head's r dimensions, basis_Dm."""
    basis_Dr = space.basis(size)
    features = group_features(space, k_K, size, group)
    return basis_Dr @ orthonormal(torch.stack([feature.weight_r for feature in features], dim=1))
