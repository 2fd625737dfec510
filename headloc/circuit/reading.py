"""Read a circuit's tensors without trusting the file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headloc.errors import CircuitError


def read_gates(path: Path, heads: int, blocks: int | None = None) -> dict[str, Tensor]:
    """Read gates.safetensors.

    Args:
        path: the file.
        heads: number of heads A of the model that circuit.json names.
        blocks: number of feed-forward blocks M that it says were gated, or None.

    Raises:
        CircuitError: when the file is missing, truncated or does not fit the model.
    """
    if not path.is_file():
        raise CircuitError(f"The circuit lacks its tensors: there is no {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CircuitError(
            f"{path} is broken or not a safetensors file ({error}). "
            "Copy the circuit again, or run the localization again."
        ) from None
    expected = {"gates": (heads, "head"), "scores": (heads, "head")}
    if blocks is not None:
        block = "feed-forward block"
        expected |= {"mlp_gates": (blocks, block), "mlp_scores": (blocks, block)}
    for name, (count, noun) in expected.items():
        _check(path, name, tensors.get(name), count, noun)
    return tensors


def _check(path: Path, name: str, tensor: Tensor | None, count: int, noun: str) -> None:
    if tensor is None or tuple(tensor.shape) != (count,) or not tensor.is_floating_point():
        found = "nothing" if tensor is None else f"{tensor.dtype} of shape {list(tensor.shape)}"
        raise CircuitError(
            f"{path} should hold {name!r} as {count} floats, one per {noun}, but holds {found}."
        )
    if not bool(torch.isfinite(tensor).all()):
        raise CircuitError(f"{path} holds {name!r} with NaN or infinity.")
