"""How many heads an ability needs at the last prompt token, and which tokens carry its signal.

Greedy backward elimination switches one head after another to its mean over tasks, each time the
one whose loss costs least; it needs no gates, so it is an independent check of what gates find.

Shapes: B prompts, T positions, L layers, H heads, Z = heads x head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from headloc.bundled.figures import Figure
from headloc.bundled.probes import (
    CachedPrompts,
    accuracy,
    answer_log_probability,
    gated,
    head_outputs,
    last_logits,
)
from headloc.bundled.prompts import Batch

#: A set of heads as a [L, H] tensor of ones and zeros, and the score of such a set.
HeadScore = Callable[[Tensor], float]

_REDUNDANT = 0.1


@dataclass(frozen=True)
class Elimination:
    """Heads in the order they were switched off, and the score that each one's loss left."""

    order: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]

    def gates(self, kept: int, shape: tuple[int, int]) -> Tensor:
        """The set of the ``kept`` heads that were switched off last, [L, H]."""
        gates_LH = torch.zeros(shape)
        for layer, head in self.order[len(self.order) - kept :]:
            gates_LH[layer, head] = 1.0
        return gates_LH


def eliminate(score: HeadScore, shape: tuple[int, int], per_round: int = 1) -> Elimination:
    """Switch off every head; each round those whose single loss leaves the best scores.

    One head a round is the exact greedy search; more are a faster approximation of it, in which a
    round passes over heads that say what one before them said: without both the score falls by
    `_REDUNDANT` nats below that without the second alone.
    """
    gates_LH = torch.ones(shape)
    order: list[tuple[int, int]] = []
    scores: list[float] = []
    while len(order) < gates_LH.numel():
        tried = {}
        for layer, head in gates_LH.nonzero().tolist():
            gates_LH[layer, head] = 0.0
            tried[layer, head] = score(gates_LH)
            gates_LH[layer, head] = 1.0
        ranking = sorted(tried, key=lambda head: tried[head], reverse=True)
        taken = 0
        for chosen in ranking[: 2 * per_round]:
            gates_LH[chosen] = 0.0
            reached = score(gates_LH) if taken else tried[chosen]
            if reached < tried[chosen] - _REDUNDANT:
                gates_LH[chosen] = 1.0
                continue
            order.append(chosen)
            scores.append(reached)
            taken += 1
            if taken == per_round:
                break
    return Elimination(tuple(order), tuple(scores))


def sparsity(
    model: LlamaForCausalLM,
    means_from: Batch,
    search: Batch,
    test: Batch,
    *,
    share: float = 0.95,
    per_round: int = 1,
) -> tuple[Figure, Figure, Figure, Elimination]:
    """Fewest heads that keep ``share`` of the accuracy on ``test``; heads found on ``search``.

    Returns:
        The number of heads, the accuracy with them, the accuracy with every head off, and the
        elimination itself.
    """
    shape = (model.config.num_hidden_layers, model.config.num_attention_heads)
    base_1LZ = head_outputs(model, means_from.ids_BT).mean(dim=0, keepdim=True)
    prompts, fresh = CachedPrompts(model, search), CachedPrompts(model, test)

    def score(gates_LH: Tensor) -> float:
        with gated(model, gates_LH, base_1LZ):
            return float(answer_log_probability(prompts.logits(), search.answers_B).mean())

    def tested(gates_LH: Tensor) -> Figure:
        with gated(model, gates_LH, base_1LZ):
            return accuracy(fresh.logits(), test.answers_B)

    found = eliminate(score, shape, per_round)
    full = accuracy(fresh.logits(), test.answers_B)
    total = shape[0] * shape[1]
    kept, reached = total, full
    for size in range(total - 1, 0, -1):
        figure = tested(found.gates(size, shape))
        if figure.value < share * full.value:
            break
        kept, reached = size, figure
    off = tested(torch.zeros(shape))
    return Figure(kept, full.samples), reached, off, found


def knock_out(model: LlamaForCausalLM, batch: Batch, blocked_T: Tensor) -> Figure:
    """Accuracy when the last token may not attend to some positions, in any layer."""
    length = batch.ids_BT.shape[1]
    allowed_TT = torch.ones(length, length, dtype=torch.bool).tril()
    allowed_TT[-1] &= ~blocked_T
    smallest = torch.finfo(torch.float32).min
    mask_11TT = torch.zeros(length, length).masked_fill(~allowed_TT, smallest)[None, None]
    return accuracy(last_logits(model, batch.ids_BT, mask_11TT), batch.answers_B)


def token_groups(shots: int) -> dict[str, Tensor]:
    """Positions [T] of each kind of token in the plain template's demonstrations."""
    length = 1 + 4 * shots + 2
    offsets = {"inputs": 0, "arrows": 1, "labels": 2, "separators": 3}
    groups = {}
    for name, offset in offsets.items():
        groups[name] = torch.zeros(length, dtype=torch.bool)
        groups[name][1 + offset : 1 + 4 * shots : 4] = True
    return groups
