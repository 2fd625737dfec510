"""Read the means that a circuit holds without trusting its file.

Shapes: R rows (token roles, or tasks), H heads of a layer, d head width, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from headloc.errors import CircuitError

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


def stored_means(
    tensors: Mapping[str, Tensor], prefix: str, rows: int, lm: FrozenLM, *, mlps: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the means of every layer's heads, mean_RHd, and of every block, mean_RD.

    Args:
        tensors: the tensors of a circuit, `PREFIX/NNN` and `PREFIX_mlp/NNN`.
        prefix: which means.
        rows: how many each layer must have.
        lm: the model that they are used in.
        mlps: whether means of feed-forward blocks are needed; none are returned else.

    Raises:
        CircuitError: when some are missing, of another model, or no finite floats.
    """
    heads = [(rows, layer.heads, layer.width) for layer in lm.layout.layers]
    blocks = [(rows, lm.width)] * (len(lm.mlps) if mlps else 0)
    return (
        tuple(_stored(tensors, f"{prefix}/{i:03d}", shape, lm) for i, shape in enumerate(heads)),
        tuple(
            _stored(tensors, f"{prefix}_mlp/{i:03d}", shape, lm) for i, shape in enumerate(blocks)
        ),
    )


def _stored(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], lm: FrozenLM
) -> Tensor:
    mean = tensors.get(name)
    if mean is None or mean.dim() != len(shape) or len(mean) != shape[0]:
        found = "is not there" if mean is None else f"has shape {list(mean.shape)}"
        raise CircuitError(
            f"The circuit does not hold the means that it was found with: {name!r} should have "
            f"{shape[0]} rows and {found}. Save it again from the run that made it."
        )
    if tuple(mean.shape) != shape:
        raise CircuitError(
            f"The stored means are of another model: {name!r} has shape {list(mean.shape)}, and "
            f"{lm.source.name!r} needs {list(shape)}. Use the model that they were estimated on."
        )
    if not mean.is_floating_point() or not bool(mean.isfinite().all()):
        raise CircuitError(
            f"The stored means are broken: {name!r} is {mean.dtype} and should hold finite floats. "
            "Copy the circuit again, or run the localization again."
        )
    return mean
