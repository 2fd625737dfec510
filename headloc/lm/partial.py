"""Run a model from the middle: skip the layers below an insertion point.

What a vector changes that is added at layer l lies above l.  The stream that enters layer l is
computed once per prompt; later passes hand it to layer l and let the layers below pass through.

The layers below are bypassed by forwards set on the instances while the block is open; whether the
result equals the full pass is found out by a probe (`supports_partial`), never assumed.

Shape legend: B rows, T columns of the current forward, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headloc.errors import HeadlocError
from headloc.lm.probing import CannotError, attempt, probing

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


@contextmanager
def reading_stream(lm: FrozenLM, layer: int) -> Iterator[list[Tensor]]:
    """Collect the stream that enters a layer, x_BTD, one entry per forward."""
    seen: list[Tensor] = []
    handle = _layer(lm, layer).register_forward_pre_hook(partial(_read, seen), with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def starting_at(lm: FrozenLM, layer: int, x_BTD: Tensor) -> Iterator[None]:
    """Start every forward at a layer, with x_BTD as the stream that enters it."""
    with ExitStack() as stack:
        for below in range(layer):
            stack.enter_context(_passing(_layer(lm, below)))
        handle = _layer(lm, layer).register_forward_pre_hook(
            partial(_replace, x_BTD), with_kwargs=True
        )
        stack.callback(handle.remove)
        yield


@contextmanager
def _passing(module: nn.Module) -> Iterator[None]:
    """Let a layer hand its input on."""
    # A device map has put a forward of its own on the instance.
    own = module.__dict__.get("forward")
    module.forward = _hand_on
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _hand_on(*args: Any, **kwargs: Any) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _read(seen: list[Tensor], module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
    seen.append((args[0] if args else kwargs["hidden_states"]).detach())


def _replace(
    x_BTD: Tensor, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (x_BTD.to(args[0].device), *args[1:]), kwargs
    x_BTD = x_BTD.to(kwargs["hidden_states"].device)
    return args, {**kwargs, "hidden_states": x_BTD}


def _layer(lm: FrozenLM, layer: int) -> nn.Module:
    blocks = lm.model.get_submodule(lm.family.layers)
    names = [name for name, _ in blocks.named_children()]
    if str(layer) not in names:
        raise HeadlocError(f"There is no layer {layer}; the model has {len(names)} layers.")
    return blocks.get_submodule(str(layer))


@torch.no_grad()
def supports_partial(lm: FrozenLM, layer: int) -> bool:
    """Whether starting at a layer gives the full pass's logits, by trying it on a few tokens.

    Raises:
        NoRoomError: when not even they fit into the device's memory.
    """
    ids_BT = torch.arange(6, device=lm.device).reshape(2, 3) % lm.vocab_size

    def logits() -> Tensor:
        found: Tensor = lm.model(input_ids=ids_BT, use_cache=False).logits
        return found

    with probing():
        with reading_stream(lm, layer) as seen:
            full_BTV = logits()
        try:
            with starting_at(lm, layer, seen[0]):
                part_BTV = attempt(logits)
        except CannotError:
            return False
    return torch.equal(full_BTV, part_BTV)
