"""Subspaces: principal components, principal angles, random and complementary bases.

A basis is a matrix of orthonormal columns.  Everything is computed in float64.

Shapes: K points, D dimensions of the space, R components, r and s dimensions of subspaces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RANK = 1e-10
"""Relative size below which a direction counts as absent."""


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of some points.

    Attributes:
        center_D: mean of the points.
        basis_DR: components, the largest variance first; those without any are left out.
        variance_R: variance along each, divided by K.
    """

    center_D: Tensor
    basis_DR: Tensor
    variance_R: Tensor

    @property
    def share_R(self) -> Tensor:
        """Share of the variance along each component."""
        return self.variance_R / self.variance_R.sum().clamp(min=1e-300)

    def dimensions(self, share: float = 0.95) -> int:
        """Return how many components reach a share of the variance."""
        reached = self.share_R.cumsum(0) >= share - 1e-12
        return int(reached.int().argmax()) + 1 if bool(reached.any()) else len(self.variance_R)

    @property
    def participation(self) -> float:
        """The participation ratio (sum v)^2 / sum v^2: an effective number of dimensions."""
        total = self.variance_R.sum().square()
        return float(total / self.variance_R.square().sum().clamp(min=1e-300))


def principal_components(points_KD: Tensor) -> Components:
    """Return the centred principal components of K points."""
    points_KD = points_KD.double()
    center_D = points_KD.mean(0)
    _, sizes_R, rows_RD = torch.linalg.svd(points_KD - center_D, full_matrices=False)
    kept = sizes_R > _RANK * sizes_R.max().clamp(min=1e-300)
    variance_R = sizes_R[kept].square() / len(points_KD)
    return Components(center_D, rows_RD[kept].T.contiguous(), variance_R)


def orthonormal(columns_Dn: Tensor) -> Tensor:
    """Return a basis of the span of some columns, dependent ones left out."""
    if columns_Dn.shape[1] == 0:
        return columns_Dn.double()
    left_DR, sizes_R, _ = torch.linalg.svd(columns_Dn.double(), full_matrices=False)
    return left_DR[:, sizes_R > _RANK * sizes_R.max().clamp(min=1e-300)]


def complement(basis_Dr: Tensor, within_DS: Tensor) -> Tensor:
    """Return a basis of what a space holds beside a subspace of it."""
    inside_Sr = within_DS.T @ basis_Dr
    left_SS, sizes, _ = torch.linalg.svd(inside_Sr, full_matrices=True)
    rank = int((sizes > _RANK).sum())
    return within_DS @ left_SS[:, rank:]


def random_basis(within_DS: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return a uniformly random subspace of a space, of `size` dimensions or all that it has."""
    wide = within_DS.shape[1]
    drawn = torch.randn(wide, min(size, wide), generator=generator, dtype=torch.float64)
    return within_DS @ torch.linalg.qr(drawn).Q


def principal_angles(a_Dr: Tensor, b_Ds: Tensor) -> Tensor:
    """Return the principal angles between two subspaces in degrees, ascending.

    Small angles come from sines and large ones from cosines, because each is inaccurate where the
    other is not (Bjorck and Golub 1973).
    """
    if b_Ds.shape[1] > a_Dr.shape[1]:
        a_Dr, b_Ds = b_Ds, a_Dr
    cosines = torch.linalg.svdvals(a_Dr.T @ b_Ds).clamp(0, 1)
    sines = torch.linalg.svdvals(b_Ds - a_Dr @ (a_Dr.T @ b_Ds)).clamp(0, 1).flip(0)
    small = cosines.square() > 0.5
    return torch.where(small, sines.asin(), cosines.acos()).rad2deg()


def overlap(a_Dr: Tensor, b_Ds: Tensor) -> float:
    """Return the mean squared cosine of the principal angles, 1 for equal spaces."""
    least = max(1, min(a_Dr.shape[1], b_Ds.shape[1]))
    return float((a_Dr.T @ b_Ds).square().sum() / least)
