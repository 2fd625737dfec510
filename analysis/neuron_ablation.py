"""Zero feed-forward neurons, and what is left of the answer.

A neuron is zeroed at every token of the prompt, which is what setting its parameters to zero does.

Shapes: B rows, T columns, N neurons of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headloc.errors import UnsupportedModelError
from headloc.heads import HeadId
from headloc.lm.taps import tap_heads

from .neurons import neuron_sites
from .reading import prompt_only

if TYPE_CHECKING:
    from headloc.lm.batch import TokenBatch
    from headloc.lm.frozen import FrozenLM

Neuron = tuple[int, int]
"""(layer, neuron within the layer)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the model makes of an answer's first token.

    Attributes:
        log_probability_B: in nats.
        rank_B: 1 where it is the most probable token.
    """

    log_probability_B: Tensor
    rank_B: Tensor

    @staticmethod
    def joined(parts: Sequence[Outcome]) -> Outcome:
        """Return the outcomes of several chunks."""
        return Outcome(
            torch.cat([part.log_probability_B for part in parts]),
            torch.cat([part.rank_B for part in parts]),
        )


@torch.no_grad()
def outcome(lm: FrozenLM, batch: TokenBatch) -> Outcome:
    """Score the first answer token of every prompt, under whatever intervention is open."""
    target_B = batch.target_BJ[:, 0].to(lm.device)
    log_p_BV = lm.logits(prompt_only(batch))[:, -1].double().log_softmax(-1)
    own_B1 = log_p_BV.gather(1, target_B[:, None])
    return Outcome(own_B1[:, 0].cpu(), (1 + (log_p_BV > own_B1).sum(-1)).cpu())


@contextmanager
def zeroed_neurons(lm: FrozenLM, chosen: Sequence[Sequence[Neuron]]) -> Iterator[None]:
    """Zero neurons while the block is open, other ones in every row.

    Args:
        lm: the frozen model.
        chosen: neurons of each row of the forwards to come.

    Raises:
        UnsupportedModelError: for neurons of a block in which they cannot be told apart.
    """
    sites = {site.layer: site for site in neuron_sites(lm)}
    by_layer: dict[int, tuple[list[int], list[int]]] = {}
    for row, neurons in enumerate(chosen):
        for layer, neuron in neurons:
            rows, index = by_layer.setdefault(layer, ([], []))
            rows.append(row)
            index.append(neuron)
    with ExitStack() as stack:
        for layer, (rows, index) in by_layer.items():
            site = sites[layer]
            if site.reason:
                raise UnsupportedModelError(f"Layer {layer}: {site.reason}.")
            hook = partial(_zero, len(chosen), torch.tensor(rows), torch.tensor(index))
            module = lm.model.get_submodule(site.down)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


@contextmanager
def zeroed_heads(lm: FrozenLM, chosen: Sequence[Sequence[HeadId]]) -> Iterator[None]:
    """Zero heads at every token while the block is open, other ones in every row."""
    known = {layer.layer: position for position, layer in enumerate(lm.layout.layers)}
    by_position: dict[int, list[tuple[int, int]]] = {}
    for row, heads in enumerate(chosen):
        for head in heads:
            lm.layout.index(head)
            by_position.setdefault(known[head.layer], []).append((row, head.head))

    def change(position: int, z_BTHd: Tensor) -> Tensor | None:
        if position not in by_position:
            return None
        out_BTHd = z_BTHd.clone()
        for row, head in by_position[position]:
            out_BTHd[row, :, head] = 0
        return out_BTHd

    with tap_heads(lm, change):
        yield


def _zero(
    rows: int, row_S: Tensor, index_S: Tensor, module: nn.Module, args: tuple[Any, ...]
) -> tuple[Any, ...]:
    # OPT flattens its tokens.
    m = args[0]
    out_BTN = (m.unflatten(0, (rows, -1)) if m.ndim == 2 else m).clone()
    out_BTN[row_S.to(m.device), :, index_S.to(m.device)] = 0
    return (out_BTN.reshape(m.shape), *args[1:])
