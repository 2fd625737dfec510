"""Logits, linear in the parts of the stream: final norm and soft cap frozen.

Source: Yu & Ananiadou 2024, arXiv 2312.12141.

    logits = cap * scale * (U (slope * centre(x) + bias) + b)

slope is the final norm's on this prompt.  cap is 1, or what a soft cap of the logits (gemma2)
multiplies each token's logit with on this prompt: frozen like the norm, so that logits stay
additive and sum to the model's own.

Shapes: B rows, S parts of each row, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import UnsupportedModelError

from .frozen_norm import FrozenNorm
from .neurons import affine, plain

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

    from .stream_reading import StreamReading

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_TOLERANCE_HALF = 3e-2


@dataclass(frozen=True, slots=True)
class Readout:
    """The way from the stream to the logits of B prompts, frozen.

    Attributes:
        norm: the final norm.
        weight_VD: unembedding U in single or double precision; the model's own weight, or for
            half precision a copy.
        bias_V: b, or None.
        scale: constant of the family.
        cap_BV: frozen soft cap; None where there is none.
        target_B: the token w whose probability is explained.
    """

    norm: FrozenNorm
    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    cap_BV: Tensor | None
    target_B: Tensor

    def rows(self, index: slice) -> Readout:
        """Return the readout of some rows."""
        cap_BV = None if self.cap_BV is None else self.cap_BV[index]
        return Readout(self.norm.rows(index), self.weight_VD, self.bias_V, self.scale, cap_BV,
                       self.target_B[index])  # fmt: skip

    def base(self, x_BD: Tensor) -> Tensor:
        """Return the logits of whole streams, biases included, logits_BV in float64."""
        raw_BV = _product(self.norm.whole(x_BD), self.weight_VD)
        raw_BV = raw_BV if self.bias_V is None else raw_BV + self.bias_V.double()
        return self._capped(raw_BV[:, None])[:, 0]

    def parts(self, v_BSD: Tensor) -> Tensor:
        """Return what parts of the stream add to the logits, logits_BSV in float64."""
        return self._capped(_product(self.norm.part(v_BSD), self.weight_VD))

    def pull(self, c_BV: Tensor) -> Tensor:
        """Return d_BD with <v, d> = sum over tokens of c * logit(v), for any part v."""
        c_BV = self.scale * (c_BV if self.cap_BV is None else c_BV * self.cap_BV)
        d_BD = c_BV.to(_wide(self.weight_VD)) @ self.weight_VD.to(_wide(self.weight_VD))
        return self.norm.pull(d_BD[:, None].double())[:, 0]

    def _capped(self, raw_BSV: Tensor) -> Tensor:
        raw_BSV = self.scale * raw_BSV
        return raw_BSV if self.cap_BV is None else raw_BSV * self.cap_BV[:, None]


@torch.no_grad()
def readout_of(lm: FrozenLM, reading: StreamReading, target_B: Tensor) -> Readout:
    """Freeze the readout of some prompts, and compare it with the model's logits.

    Args:
        lm: the frozen model.
        reading: the prompts' streams.
        target_B: the token to explain for each.

    Raises:
        UnsupportedModelError: when the frozen readout does not give the model's logits.
    """
    head = lm.model.get_output_embeddings()
    if not plain(head):
        raise UnsupportedModelError(
            f"The unembedding ({type(head).__name__}) has no plain weight. Load the model without "
            "quantisation."
        )
    weight_VD, bias_V = affine(head)
    # Once, and not at every product: for half precision this is a copy.
    weight_VD = weight_VD.to(_wide(weight_VD))
    config = lm.model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    readout = Readout(reading.norm, weight_VD, bias_V, scale, None, target_B.to(weight_VD.device))
    raw_BV = readout.base(reading.final_BD)
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        # Near zero the cap does nothing; the quotient would be noise.
        safe_BV = raw_BV.where(raw_BV.abs() > 1e-9, 1.0)
        cap_BV = (cap * torch.tanh(safe_BV / cap) / safe_BV).where(raw_BV.abs() > 1e-9, 1.0)
        readout = Readout(reading.norm, weight_VD, bias_V, scale, cap_BV, readout.target_B)
        raw_BV = raw_BV * cap_BV
    gap = (raw_BV - reading.logits_BV).norm() / reading.logits_BV.norm()
    if not gap <= _TOLERANCE.get(lm.dtype, _TOLERANCE_HALF):
        raise UnsupportedModelError(
            f"The final norm and unembedding of {lm.source.name!r} do not give its logits "
            f"(relative gap {float(gap):.1g}), so these do not split into parts. Attribution does "
            "not support this model."
        )
    return readout


def _wide(weight: Tensor) -> torch.dtype:
    """Products run in float32 for half and single precision, in float64 for double."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _product(v: Tensor, weight_VD: Tensor) -> Tensor:
    dtype = _wide(weight_VD)
    return (v.to(dtype) @ weight_VD.to(dtype).T).double()
