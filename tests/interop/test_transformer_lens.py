"""TransformerLens 4 on the same weights: an exported circuit closes the same heads, same logits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headloc.circuit import Circuit
from tests.circuit.made import tiny_circuit
from tests.interop.peers import (
    MODELS,
    TOLERANCE,
    closed_heads,
    model_folder,
    off_value,
    own_lm,
    own_logits,
    token_ids,
)

# The peer's own warnings are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def lens() -> Any:
    reason = "TransformerLens 4 is not installed: make interop"
    pytest.importorskip("transformer_lens", reason=reason)
    return pytest.importorskip("transformer_lens.model_bridge", reason=reason).TransformerBridge


@pytest.mark.parametrize(
    ("off", "positions"), [("zero", "last"), ("mean", "last"), ("zero", "all")]
)
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_circuit_gives_the_same_logits(
    name: str, off: str, positions: str, lens: Any, tmp_path: Path
) -> None:
    lm = own_lm(name)
    circuit, ids = tiny_circuit(lm, off_value=off, positions=positions), token_ids(lm)
    bridge = lens.boot_transformers(str(model_folder(name, tmp_path)), device="cpu")
    with torch.no_grad():
        untouched = bridge(ids)
        torch.testing.assert_close(untouched, lm.model(ids).logits, **TOLERANCE)
        edits = [
            (f"blocks.{layer}.attn.hook_z", partial(close, circuit=circuit, layer=layer))
            for layer in range(len(circuit.heads_per_layer))
        ]
        theirs = bridge.run_with_hooks(ids, fwd_hooks=edits)
    ours = own_logits(circuit, lm, ids)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    # The comparison means something: the circuit changes the answer.
    assert float((ours - untouched)[:, -1].abs().max()) > 0.1


def close(z: Tensor, hook: Any, *, circuit: Circuit, layer: int) -> Tensor:
    """A hook of TransformerLens: heads outside the circuit at their off-value."""
    z_BTHd = (
        z.clone().unflatten(-1, (circuit.heads_per_layer[layer], -1)) if z.ndim == 3 else z.clone()
    )
    where = slice(None) if circuit.objective["positions"] == "all" else slice(-1, None)
    for head in closed_heads(circuit)[layer]:
        z_BTHd[:, where, head] = off_value(circuit, layer, head)
    return z_BTHd.reshape(z.shape)
