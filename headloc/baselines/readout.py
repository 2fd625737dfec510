"""Read vectors of the residual stream in vocabulary space: final norm and unembedding alone.

The model runs with every layer handing its input on, so that final norms, scales, soft caps and
untied heads are those of the model itself, in any family.

Shape legend: S vectors, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import nn

    from headloc.lm.frozen import FrozenLM

ROWS_PER_PASS = 2048


@torch.no_grad()
def log_probabilities(lm: FrozenLM, x_SD: Tensor, target_S: Tensor) -> Tensor:
    """Return log p(target | x)_S of the model's final norm and unembedding, float64.

    The layers do not run, so a ledger counts nothing.

    Args:
        lm: the frozen model.
        x_SD: vectors of the residual stream.
        target_S: token ids.
    """
    parts = []
    for start in range(0, len(x_SD), ROWS_PER_PASS):
        part = slice(start, start + ROWS_PER_PASS)
        logits_SV = _unembedded(lm, x_SD[part])
        log_p_SV = logits_SV.double().log_softmax(-1)
        parts.append(log_p_SV.gather(1, target_S[part, None])[:, 0])
    return torch.cat(parts)


def _unembedded(lm: FrozenLM, x_SD: Tensor) -> Tensor:
    """Return logits_SV of the model without its layers."""
    ids_S1 = torch.full((len(x_SD), 1), lm.pad_id, device=lm.device)
    blocks = [block for _, block in lm.model.get_submodule(lm.family.layers).named_children()]
    rest = _rest_of_output(lm, blocks[-1])
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_returning(block, x_SD[:, None], rest))
        # Not the module's call: a ledger counts those as passes of the whole model.
        return lm.model.forward(input_ids=ids_S1, use_cache=False).logits[:, -1]


def _rest_of_output(lm: FrozenLM, block: nn.Module) -> int | None:
    """Return how many values a layer returns beside the stream; None where it returns it alone."""
    seen: list[Any] = []
    handle = block.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        lm.model.forward(input_ids=torch.full((1, 1), lm.pad_id, device=lm.device), use_cache=False)
    finally:
        handle.remove()
    return len(seen[0]) - 1 if isinstance(seen[0], tuple) else None


@contextmanager
def _returning(module: nn.Module, x_S1D: Tensor, rest: int | None) -> Iterator[None]:
    """Let a layer return given vectors, in the form in which it returns its own."""
    # A device map has put a forward of its own on the instance.
    own = module.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        stream = args[0] if args else kwargs["hidden_states"]
        x = x_S1D.to(stream)
        return x if rest is None else (x, *[None] * rest)

    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
