"""Which components each condition of the verdict leaves open.

    full              the untouched model
    circuit           the chosen components, all others at their off-value   (sufficiency)
    without_circuit   everything but the chosen components                    (necessity)
    random            random sets of the same size, all others off            (control)
    random_layers     random sets with as many heads in every layer           (control)
    off               everything at its off-value

Where feed-forward blocks are gated beside the heads, four more tell the two apart:

    heads_open_mlps   the circuit's heads, every feed-forward block on
    heads_only        the circuit's heads, every feed-forward block off
    mlps_only         the circuit's feed-forward blocks, every head off
    no_mlps           every head on, every feed-forward block off

and the random sets have as many heads and as many feed-forward blocks as the circuit; those matched
by layer keep the circuit's own feed-forward blocks, so that they vary the heads alone.

Shapes: A heads, M gated feed-forward blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headloc.components import Components
from headloc.randomness import stream

CONDITIONS = ("full", "circuit", "without_circuit", "random", "random_layers", "off")
APART = ("heads_open_mlps", "heads_only", "mlps_only", "no_mlps")
"""Conditions that are scored where feed-forward blocks are gated, after the circuit."""


def plan_conditions(
    components: Components, chosen: Sequence[int], *, seed: int, random_sets: int
) -> dict[str, list[Tensor | None]]:
    """Return the masks [A + M] of every condition, in the order of the tables.

    Args:
        components: what the gates stand for.
        chosen: flat indices of the circuit.
        seed: seed of the controls.
        random_sets: number of random sets of either kind.
    """
    rng = stream(seed, "controls")
    total = components.total
    chosen_A = torch.zeros(total)
    chosen_A[list(chosen)] = 1.0
    plan: dict[str, list[Tensor | None]] = {
        "full": [None],
        "circuit": [chosen_A],
        "without_circuit": [1.0 - chosen_A],
        "off": [torch.zeros(total)],
    }
    if components.mlps:
        plan |= {name: [mask_A] for name, mask_A in _apart(components, chosen_A).items()}
    if random_sets > 0:
        # A stream for either kind: further sets leave the first ones as they are.
        layers = stream(seed, "controls", "layers")
        plan["random"] = [_random(rng, components, chosen_A) for _ in range(random_sets)]
        plan["random_layers"] = [
            _layer_matched(layers, components, chosen_A) for _ in range(random_sets)
        ]
    order = (*CONDITIONS[:2], *APART, *CONDITIONS[2:])
    return {name: plan[name] for name in order if name in plan}


def _apart(components: Components, chosen_A: Tensor) -> dict[str, Tensor]:
    """Return the conditions that tell heads and feed-forward blocks apart."""
    heads_A, mlps_M = components.split(chosen_A)
    all_A, all_M = torch.ones_like(heads_A), torch.ones_like(mlps_M)
    return {
        "heads_open_mlps": torch.cat([heads_A, all_M]),
        "heads_only": torch.cat([heads_A, 0 * all_M]),
        "mlps_only": torch.cat([0 * all_A, mlps_M]),
        "no_mlps": torch.cat([all_A, 0 * all_M]),
    }


def _random(rng: np.random.Generator, components: Components, chosen_A: Tensor) -> Tensor:
    """Return a random mask with as many components of either kind as `chosen_A`."""
    parts = []
    for part in components.split(chosen_A):
        mask = torch.zeros_like(part)
        if len(part):
            drawn = rng.choice(len(part), int(part.sum()), replace=False)
            mask[torch.from_numpy(drawn)] = 1.0
        parts.append(mask)
    return torch.cat(parts)


def _layer_matched(rng: np.random.Generator, components: Components, chosen_A: Tensor) -> Tensor:
    """Return a random mask with as many open heads in every layer as `chosen_A`."""
    heads_A, mlps_M = components.split(chosen_A)
    parts = [
        heads_A[part][torch.from_numpy(rng.permutation(part.stop - part.start))]
        for part in components.layout.slices()
    ]
    return torch.cat([*parts, mlps_M])
