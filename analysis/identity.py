"""The aggregation and extraction identity.

For a head with attention alpha_t from the last prompt token, inputs n_t and W = O V,

    Q^T h = sum_t alpha_t s_t (E^T n_t + Q^T O b),     E = W^T Q = V^T O^T Q                     (I)

The coordinate of a head's output along u is the attention-weighted sum of its inputs' coordinates
along W^T u.  span(E) is the extraction subspace, of at most min(r, d) dimensions.  b is the value
bias; s_t is 1, or the frozen norm of a latent (`value_maps.py`).

Families that normalise the attention's output before adding it (Gemma-2 and -3, OLMo-2, GLM-4) add
c * h with c = gamma / rms, one vector per token that all heads share: with that norm frozen, (I)
holds for the contribution to the stream with c * O in place of O (`frozen_output_scale`).

Shapes: B rows, T columns, H heads of a layer, d head width, D model width, r dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .linear import orthonormal
from .reading import LayerReading
from .value_maps import ValueMap

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


@dataclass(frozen=True, slots=True)
class ExtractionMap:
    """How a subspace of a head's output is read from its inputs.

    Attributes:
        directions_Dr: E, one direction per coordinate of the aggregation subspace.
        constant_r: Q^T O b, what the value bias adds per unit of attention.
    """

    directions_Dr: Tensor
    constant_r: Tensor

    @property
    def basis_Dr(self) -> Tensor:
        """Basis of the extraction subspace."""
        return orthonormal(self.directions_Dr)

    def coordinates(self, n_BTD: Tensor, scale_BT: Tensor) -> Tensor:
        """Return what each token would contribute with full attention, coordinates_BTr."""
        return scale_BT[..., None] * (n_BTD @ self.directions_Dr + self.constant_r)

    def aggregated(self, n_BTD: Tensor, scale_BT: Tensor, attention_BT: Tensor) -> Tensor:
        """Return the right-hand side of (I), coordinates_Br."""
        return (attention_BT[..., None] * self.coordinates(n_BTD, scale_BT)).sum(1)


def extraction_map(
    values: ValueMap, head: int, heads: int, weight_dD: Tensor, basis_Dr: Tensor
) -> ExtractionMap:
    """Return E = V^T O^T Q of a head.

    Args:
        values: value map of its layer.
        head: the head within the layer.
        heads: number of query heads of the layer.
        weight_dD: W_O of the head (O^T in the identity).
        basis_Dr: basis Q of a subspace of its output, or single directions as columns.
    """
    readout_dr = weight_dD.to(basis_Dr) @ basis_Dr
    value_dD, bias_d = values.of_head(head, heads)
    return ExtractionMap(value_dD.to(basis_Dr).T @ readout_dr, bias_d.to(basis_Dr) @ readout_dr)


def both_sides(
    reading: LayerReading, row: int, found: ExtractionMap, scale_BT: Tensor, readout_dr: Tensor
) -> tuple[Tensor, Tensor]:
    """Return both sides of (I) for one head, coordinates_Br each.

    Args:
        reading: a reading with inputs.
        row: place of the head among the reading's heads.
        found: its extraction map.
        scale_BT: s_t of the layer's value map.
        readout_dr: W_O Q of the head.

    Raises:
        ValueError: when the reading has no inputs.
    """
    if reading.inputs_BTD is None:
        raise ValueError("The reading was made without inputs: read with inputs=True.")
    left_Br = reading.z_BHd[:, row].to(readout_dr) @ readout_dr
    n_BTD = reading.inputs_BTD.to(readout_dr)
    attention_BT = reading.attention_BHT[:, row].to(readout_dr)
    return left_Br, found.aggregated(n_BTD, scale_BT.to(readout_dr), attention_BT)


@contextmanager
def frozen_output_scale(lm: FrozenLM, positions: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect what a norm behind the attention multiplies its output with, c_BTD per layer.

    Layers without such a norm have no entry: there c is 1.  The norm is recognised by what it is
    given: the very tensor that the attention module has returned.
    """
    found: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for position in positions:
            site = lm.sites[position]
            latest: list[Tensor] = []
            attention = lm.model.get_submodule(site.attention)
            stack.callback(attention.register_forward_hook(partial(_keep, latest)).remove)
            for name, module in lm.model.get_submodule(site.block).named_children():
                if "norm" in name.lower():
                    hook = partial(_divide, found, position, latest)
                    stack.callback(module.register_forward_hook(hook).remove)
        yield found


def _keep(latest: list[Tensor], module: nn.Module, args: Any, output: Any) -> None:
    latest[:] = [output[0] if isinstance(output, tuple) else output]


def _divide(
    found: dict[int, Tensor],
    position: int,
    latest: list[Tensor],
    module: nn.Module,
    args: tuple[Any, ...],
    output: Tensor,
) -> None:
    if latest and args and args[0] is latest[0]:
        # Exact to rounding wherever the input is not zero; a zero stays a zero whatever c is.
        safe = args[0].where(args[0] != 0, 1.0)
        found[position] = (output / safe).detach()
