"""Where position enters a head's score, and the score split exactly into content and position.

    score = scale * q_c . k_c                           content
          + scale * (q . k - q_c . k_c)                 learned positions in the stream
          + scale * ((R_i q) . (R_t k) - q . k)         rotary embedding
          + bias_t                                      ALiBi

q_c and k_c are projected from the attention's input without the position embedding that the stream
carries from the first layer on (its norm frozen); without learned positions they are q and k.  What
lower layers have *computed* from positions counts as content: it is part of what they hand on.

Which rotation a family uses (halves or pairs, or none in some layers) and how its bias is scaled is
found out on a trial forward, by comparing with the stored keys and with the model's attention.

Shapes: B rows, T columns, C chosen columns (the last is the query's), H heads, K key heads, d head
width, r rotated dimensions, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention_seen import Seen
from .query_key_maps import QueryKeyMap


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the last chosen column with each of them, in float64.

    Attributes:
        content_BHC: the content part.
        position_BHC: the position part.
    """

    content_BHC: Tensor
    position_BHC: Tensor

    @property
    def total_BHC(self) -> Tensor:
        """The logits of the model's attention, before mask and softmax."""
        return self.content_BHC + self.position_BHC


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a layer brings position into its scores.

    Attributes:
        rotation: a key of `ROTATIONS`.
        bias_scale: factor on its position bias.
    """

    rotation: str = "none"
    bias_scale: float = 1.0


def split_scores(maps: QueryKeyMap, scheme: Scheme, seen: Seen) -> Scores:
    """Return the scores of a layer's heads, split.

    Args:
        maps: projections of the layer.
        scheme: how position enters.
        seen: what the attention was given.
    """
    q_BHd, k_BCHd = _towers(maps, seen.n_BCD)
    plain_BHC = _product(q_BHd, k_BCHd, maps.scale)
    content_BHC, position_BHC = plain_BHC, torch.zeros_like(plain_BHC)
    if seen.learned_BCD is not None:
        content_BHC = _product(*_towers(maps, seen.content_BCD), maps.scale)
        position_BHC = plain_BHC - content_BHC
    if scheme.rotation != "none":
        turned = [rotated(scheme.rotation, x, seen, columns) for x, columns in
                  ((q_BHd[:, None], slice(-1, None)), (k_BCHd, slice(None)))]  # fmt: skip
        position_BHC = position_BHC + _product(turned[0][:, 0], turned[1], maps.scale) - plain_BHC
    if seen.bias_BHC is not None:
        position_BHC = position_BHC + scheme.bias_scale * seen.bias_BHC.double()
    return Scores(content_BHC, position_BHC)


def content_towers(maps: QueryKeyMap, seen: Seen) -> tuple[Tensor, Tensor]:
    """Return the query tower q_BHd of the last column and the key tower k_BCHd of all, content."""
    return _towers(maps, seen.content_BCD)


def _towers(maps: QueryKeyMap, n_BCD: Tensor) -> tuple[Tensor, Tensor]:
    q_BHd = maps.queries(n_BCD[:, -1:])[:, 0].double()
    return q_BHd, maps.keys(n_BCD).repeat_interleave(maps.group, dim=2).double()


def _product(q_BHd: Tensor, k_BCHd: Tensor, scale: float) -> Tensor:
    return scale * torch.einsum("bhd,bchd->bhc", q_BHd, k_BCHd)


def _halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Dimensions i and i + r/2 turn together (llama, gpt_neox)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Dimensions 2i and 2i + 1 turn together (cohere)."""
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + turned * sin


def _pairs_of_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same with angles stored for halves (glm, helium, ernie)."""
    cos, sin = (part[..., : part.shape[-1] // 2].repeat_interleave(2, -1) for part in (cos, sin))
    return _pairs(x, cos, sin)


Rotation = Callable[[Tensor, Tensor, Tensor], Tensor]

ROTATIONS: Mapping[str, Rotation] = {
    "none": lambda x, cos, sin: x,
    "halves": _halves,
    "pairs": _pairs,
    "pairs_of_halves": _pairs_of_halves,
}
"""How queries and keys [..., r] are turned by angles whose cosines and sines are [..., r]."""


def rotated(kind: str, x_BCHd: Tensor, seen: Seen, columns: slice) -> Tensor:
    """Return queries or keys turned by their positions; dimensions beyond r stay."""
    if kind == "none" or seen.cos_BCr is None or seen.sin_BCr is None:
        return x_BCHd
    cos, sin = (part[:, columns, None].to(x_BCHd) for part in (seen.cos_BCr, seen.sin_BCr))
    width = cos.shape[-1]
    turned = ROTATIONS[kind](x_BCHd[..., :width], cos, sin)
    return torch.cat([turned, x_BCHd[..., width:]], dim=-1)
