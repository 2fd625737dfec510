"""Circuits of tiny models, with means of every role, for tests that apply or compare them."""

from __future__ import annotations

from typing import Any

import torch

from headloc.circuit import Circuit
from headloc.circuit.feed_forward import FeedForward
from headloc.lm.batch import Role
from headloc.lm.frozen import FrozenLM
from headloc.objectives import RoleMeans


def tiny_circuit(
    lm: FrozenLM,
    *,
    off_value: str = "mean",
    positions: str = "last",
    seed: int = 0,
    share: float = 0.5,
    mlps: bool = False,
    answers_seen: bool = True,
) -> Circuit:
    """A circuit of random heads of a model, with random means.

    Args:
        lm: the model.
        off_value: zero or mean.
        positions: last or all.
        seed: of the heads and means.
        share: chance of a head, and of a feed-forward block, to be in it.
        mlps: whether feed-forward blocks are gated too.
        answers_seen: whether the means know answer tokens.
    """
    draw = torch.Generator().manual_seed(seed)
    heads = [head for head in lm.layout if float(torch.rand((), generator=draw)) < share]
    layers = tuple(site.layer for site in lm.mlps) if mlps else ()
    kept = tuple(x for x in layers if float(torch.rand((), generator=draw)) < share)
    counts = torch.ones(len(Role))
    counts[Role.ANSWER] = float(answers_seen)
    means = RoleMeans(
        tuple(
            torch.randn(len(Role), layer.heads, layer.width, generator=draw)
            for layer in lm.layout.layers
        ),
        counts,
        tuple(torch.randn(len(Role), lm.width, generator=draw) for _ in layers),
    )
    gates = torch.tensor([float(head in heads) for head in lm.layout])
    objective: dict[str, Any] = {
        "name": "in_place",
        "off_value": off_value,
        "loss": "kl",
        "positions": positions,
    }
    if mlps:
        objective["mlps"] = True
    open_M = torch.tensor([float(layer in kept) for layer in layers])
    return Circuit(
        heads=tuple(heads),
        gates=gates,
        scores=torch.randn(lm.layout.total, generator=draw),
        model=lm.source.to_dict(),
        objective=objective,
        task={"family": "add_k", "options": {}},
        selection={},
        seed=seed,
        tensors=means.to_tensors() if off_value == "mean" else {},
        feed_forward=FeedForward(kept, layers, open_M, open_M) if mlps else None,
    )
