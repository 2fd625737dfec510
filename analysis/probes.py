"""Linear probes: can a class be read off a vector?  Ridge regression onto one-hot classes.

Shapes: n points, D dimensions, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted probe.

    Attributes:
        center_D: mean of the points that it was fitted on.
        scale_D: their spread, 1 where there is none.
        weight_DC: weights of the classes.
        bias_C: share of each class among them.
    """

    center_D: Tensor
    scale_D: Tensor
    weight_DC: Tensor
    bias_C: Tensor

    def predict(self, points_nD: Tensor) -> Tensor:
        """Return the class of each point."""
        z_nD = (points_nD.double() - self.center_D) / self.scale_D
        return (z_nD @ self.weight_DC + self.bias_C).argmax(-1)


def fit_probe(points_nD: Tensor, class_n: Tensor, classes: int, ridge: float = 0.1) -> Probe:
    """Fit a probe.

    Args:
        points_nD: the points.
        class_n: their classes, 0 .. classes - 1.
        classes: number of classes.
        ridge: penalty relative to the number of points, on standardised dimensions.
    """
    points_nD = points_nD.double()
    center_D = points_nD.mean(0)
    spread_D = points_nD.std(0, unbiased=False)
    scale_D = spread_D.where(spread_D > 1e-9 * spread_D.max().clamp(min=1e-300), 1.0)
    z_nD = (points_nD - center_D) / scale_D
    target_nC = torch.nn.functional.one_hot(class_n, classes).double()
    bias_C = target_nC.mean(0)
    penalty = ridge * len(z_nD)
    if z_nD.shape[0] < z_nD.shape[1]:
        # The same solution by way of points instead of dimensions.
        gram_nn = z_nD @ z_nD.T + penalty * torch.eye(len(z_nD), dtype=z_nD.dtype)
        weight_DC = z_nD.T @ torch.linalg.solve(gram_nn, target_nC - bias_C)
    else:
        gram_DD = z_nD.T @ z_nD + penalty * torch.eye(z_nD.shape[1], dtype=z_nD.dtype)
        weight_DC = torch.linalg.solve(gram_DD, z_nD.T @ (target_nC - bias_C))
    return Probe(center_D, scale_D, weight_DC, bias_C)
