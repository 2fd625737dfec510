"""nnsight on the same weights: an exported circuit closes the same heads, same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.circuit.made import tiny_circuit
from tests.interop.peers import (
    MODELS,
    TOLERANCE,
    closed_heads,
    off_value,
    own_lm,
    own_logits,
    token_ids,
)

# The peer's own warnings are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def nnsight() -> Any:
    return pytest.importorskip("nnsight", reason="nnsight is not installed: make interop")


@pytest.mark.parametrize("off", ["zero", "mean"])
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_circuit_gives_the_same_logits(name: str, off: str, nnsight: Any) -> None:
    lm = own_lm(name)
    circuit, ids = tiny_circuit(lm, off_value=off), token_ids(lm)
    ours = own_logits(circuit, lm, ids)
    edits = [
        (layer, head, off_value(circuit, layer, head))
        for layer, heads in enumerate(closed_heads(circuit))
        for head in heads
    ]
    widths = [layer.width for layer in lm.layout.layers]
    peer = nnsight.NNsight(own_lm(name).model)
    with torch.no_grad(), peer.trace(ids):
        for layer, head, value in edits:
            if name == "gpt2":
                projection = peer.transformer.h[layer].attn.c_proj
            else:
                projection = peer.model.layers[layer].self_attn.o_proj
            start = head * widths[layer]
            projection.input[:, -1, start : start + widths[layer]] = value
        theirs = peer.output.logits.save()
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    with torch.no_grad():
        assert float((ours - lm.model(ids).logits)[:, -1].abs().max()) > 0.1
