"""The metric that a head has learned: its bilinear form B = W_Q^T W_K, of rank d in D dimensions.

All figures come from matrices of d or 2 d rows; the D x D form is never made.

Shapes: d head width, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values and symmetric part of a bilinear form.

    Attributes:
        singular_d: singular values, the largest first.
        symmetric_d2: eigenvalues of the symmetric part (B + B^T) / 2, the largest first [2 d].
        symmetric_share: squared Frobenius norm of the symmetric part over that of B: 1 for a
            symmetric form, .5 for a random one, 0 for an antisymmetric one.
        positive_share: share of positive eigenvalues in the symmetric part, by absolute value:
            1 where it is a (semi-)metric, .5 for a random form.
    """

    singular_d: Tensor
    symmetric_d2: Tensor
    symmetric_share: float
    positive_share: float

    @property
    def effective_rank(self) -> float:
        """Participation ratio of the squared singular values."""
        energy_d = self.singular_d.square()
        return float(energy_d.sum().square() / energy_d.square().sum().clamp(min=1e-300))


def bilinear_spectrum(query_dD: Tensor, key_dD: Tensor) -> Spectrum:
    """Return the spectrum of B = W_Q^T W_K.

    Args:
        query_dD: W_Q of the head.
        key_dD: W_K of the head.
    """
    query_dD, key_dD = query_dD.double(), key_dD.double()
    left_dd, right_dd = (torch.linalg.qr(w.T, mode="r").R for w in (query_dD, key_dD))
    singular_d = torch.linalg.svdvals(left_dd @ right_dd.T)
    # B and its transpose live in the span of the rows of both projections.
    basis_DR = torch.linalg.qr(torch.cat([query_dD, key_dD]).T).Q
    inner_RR = (query_dD @ basis_DR).T @ (key_dD @ basis_DR)
    symmetric_RR = (inner_RR + inner_RR.T) / 2
    values_R = torch.linalg.eigvalsh(symmetric_RR).flip(0)
    total = values_R.abs().sum().clamp(min=1e-300)
    norm = inner_RR.square().sum().clamp(min=1e-300)
    return Spectrum(
        singular_d,
        values_R,
        float(symmetric_RR.square().sum() / norm),
        float(values_R.clamp(min=0).sum() / total),
    )
