"""A norm with its scale frozen is linear: norm(v) = slope * centre(v) + bias.

Source: Yu & Ananiadou 2024, arXiv 2312.12141.

Slope and centring are measured on the module itself, so that every kind of norm (LayerNorm,
RMSNorm, the variants that add one to their weight) is read the same way: norm(0) is the bias,
norm(1) tells whether the mean is taken out, and the scale of a row is fitted to what the norm has
put out for it.
A norm of one vector alone would cancel its size and is not what is meant.

Shapes: B rows, D model width; `...D` any leading dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headloc.errors import UnsupportedModelError

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Norms compute in float32 whatever the model's precision."""
_TOLERANCE_HALF = 3e-2
_SMALL = 1e-4
"""Entries below this share of a row's size keep the fitted slope: a quotient would be noise."""


@dataclass(frozen=True, slots=True)
class FrozenNorm:
    """A norm with the scale that it had on B rows, in float64.

    Attributes:
        slope_BD: what every entry is multiplied with.
        bias_D: what is added once to a whole stream and never to a part.
        centred: whether the mean is taken out first.
    """

    slope_BD: Tensor
    bias_D: Tensor
    centred: bool

    def part(self, v_BSD: Tensor) -> Tensor:
        """Return what S parts of each row's stream contribute behind the norm, [B, S, D]."""
        v_BSD = v_BSD.to(self.slope_BD)
        return self.slope_BD[:, None] * (_centre(v_BSD) if self.centred else v_BSD)

    def whole(self, x_BD: Tensor) -> Tensor:
        """Return the frozen norm of whole streams, bias included."""
        return self.part(x_BD[:, None])[:, 0] + self.bias_D

    def pull(self, d_BSD: Tensor) -> Tensor:
        """Return the directions before the norm whose inner product with a part is that behind."""
        scaled_BSD = self.slope_BD[:, None] * d_BSD.to(self.slope_BD)
        return _centre(scaled_BSD) if self.centred else scaled_BSD

    def rows(self, index: slice) -> FrozenNorm:
        """Return the norm of some rows."""
        return FrozenNorm(self.slope_BD[index], self.bias_D, self.centred)


def identity_norm(x_BD: Tensor) -> FrozenNorm:
    """Return the norm of a place that has none."""
    x_BD = x_BD.double()
    return FrozenNorm(torch.ones_like(x_BD), torch.zeros_like(x_BD[0]), False)


@torch.no_grad()
def freeze_norm(module: nn.Module, x_BD: Tensor, y_BD: Tensor, dtype: torch.dtype) -> FrozenNorm:
    """Return a norm frozen on rows that it has seen.

    Args:
        module: the norm.
        x_BD: what went in.
        y_BD: what came out.
        dtype: the model's precision.

    Raises:
        UnsupportedModelError: when the module is no norm with one scale per row.
    """
    width = x_BD.shape[-1]
    signs_D = 1.0 - 2.0 * (torch.arange(width, device=x_BD.device) % 2)
    probes_3D = torch.stack([torch.zeros_like(signs_D), torch.ones_like(signs_D), signs_D])
    zero_D, one_D, sign_D = module(probes_3D.to(x_BD.dtype)).double()
    centred = bool((one_D - zero_D).norm() < 0.05 * (sign_D - zero_D).norm())
    signs_D = signs_D.double()
    gain_D = (sign_D - zero_D) / (_centre(signs_D) if centred else signs_D)
    inner_BD = _centre(x_BD.double()) if centred else x_BD.double()
    rest_BD = y_BD.double() - zero_D
    shape_BD = gain_D * inner_BD
    size_B1 = shape_BD.square().sum(-1, keepdim=True).clamp(min=1e-300)
    slope_BD = gain_D * ((shape_BD * rest_BD).sum(-1, keepdim=True) / size_B1)
    gap = (slope_BD * inner_BD - rest_BD).norm() / rest_BD.norm().clamp(min=1e-300)
    if gap > _TOLERANCE.get(dtype, _TOLERANCE_HALF):
        raise UnsupportedModelError(
            f"A norm of this model ({type(module).__name__}) does more than scale its input "
            f"(relative gap {float(gap):.1g}), so it cannot be frozen and the logits do not split "
            "into parts. Attribution needs LayerNorm or RMSNorm."
        )
    if dtype == torch.float64:
        # Most norms round to float32 on the way; taken entry by entry the sum stays exact.
        far_BD = inner_BD.abs() > _SMALL * inner_BD.square().mean(-1, keepdim=True).sqrt()
        exact_BD = rest_BD / inner_BD.where(far_BD, 1.0)
        slope_BD = exact_BD.where(far_BD, slope_BD)
    return FrozenNorm(slope_BD, zero_D, centred)


def _centre(v: Tensor) -> Tensor:
    return v - v.mean(-1, keepdim=True)
