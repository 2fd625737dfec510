"""The feed-forward part of a circuit, where these blocks were gated beside the heads.

Shapes: M gated feed-forward blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headloc.errors import CircuitError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Which feed-forward blocks of a model were gated, and which of them stay on.

    Attributes:
        kept: layers whose blocks belong to the circuit, rising.
        layers: layers whose blocks were gated, rising.
        gates: trained gates [M], float32.
        scores: what the blocks were ranked by [M], on the scale of the heads' scores.
    """

    kept: tuple[int, ...]
    layers: tuple[int, ...]
    gates: Tensor
    scores: Tensor

    def check(self, layers: tuple[int, ...], name: str) -> None:
        """Refuse a model whose feed-forward blocks are in other layers.

        Raises:
            CircuitError: naming both.
        """
        if layers != self.layers:
            raise CircuitError(
                f"This circuit gates the feed-forward blocks of layers {_span(self.layers)}; "
                f"{name!r} has them in layers {_span(layers)}. Load the model that the circuit "
                "names."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return its entries of circuit.json."""
        return {"mlps": list(self.kept), "mlp_layers": list(self.layers)}

    def to_tensors(self) -> dict[str, Tensor]:
        """Return its entries of gates.safetensors."""
        return {"mlp_gates": self.gates, "mlp_scores": self.scores}

    @classmethod
    def take(cls, data: Mapping[str, Any], tensors: dict[str, Tensor]) -> FeedForward:
        """Read it back from a checked circuit.json, and take its entries out of `tensors`."""
        kept, layers = tuple(data["mlps"]), tuple(data["mlp_layers"])
        return cls(kept, layers, tensors.pop("mlp_gates"), tensors.pop("mlp_scores"))


def _span(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) or "none"
