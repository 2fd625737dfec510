"""From head outputs to what heads add to the residual stream: z[l,h] W_O[h].

The bias of the output projection belongs to no head and is left out.  Families that normalise or
scale the attention output before the residual add do so to these vectors as well, where they are
added at the attention's output (`add_to_stream`).

Shape legend: B rows, H heads of a layer, d head width, D model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import UnsupportedModelError
from headloc.lm.placement import in_place

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


def output_weights(lm: FrozenLM, position: int) -> Tensor:
    """Return W_O of a layer as weight_HdD, a view of the model's own weight where possible.

    Args:
        lm: the frozen model.
        position: position of the layer in `lm.layout.layers`.

    Raises:
        UnsupportedModelError: when the projection holds no plain weight (quantised modules).
    """
    layer = lm.layout.layers[position]
    module = lm.model.get_submodule(lm.sites[position].projection)
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.device.type == "meta":
        weight = in_place(lm.model, f"{lm.sites[position].projection}.weight")
    inputs = layer.heads * layer.width
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.ndim != 2:
        raise UnsupportedModelError(
            f"The output projection of layer {layer.layer} ({type(module).__name__}) has no plain "
            "weight, so single heads cannot be projected. Load the model without quantisation."
        )
    # GPT-2's Conv1D stores [in, out], every Linear [out, in].
    is_conv = type(module).__name__ == "Conv1D"
    weight_ID = weight if is_conv else weight.T
    if weight_ID.shape[0] != inputs:
        raise UnsupportedModelError(
            f"The output projection of layer {layer.layer} takes {weight_ID.shape[0]} inputs; "
            f"expected {layer.heads} heads of width {layer.width}."
        )
    return weight_ID.unflatten(0, (layer.heads, layer.width))


@torch.no_grad()
def head_contributions(lm: FrozenLM, position: int, z_BHd: Tensor) -> Tensor:
    """Return what each head adds to the residual stream, contribution_BHD, in z's dtype."""
    weight_HdD = output_weights(lm, position).to(z_BHd.device)
    dtype = torch.promote_types(z_BHd.dtype, weight_HdD.dtype)
    return torch.einsum("bhd,hdm->bhm", z_BHd.to(dtype), weight_HdD.to(dtype))
