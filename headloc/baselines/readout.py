"""Read vectors of the residual stream in vocabulary space: final norm and unembedding alone.

The model runs with every layer handing its input on, so that final norms, scales, soft caps and
untied heads are those of the model itself, in any family.  What is outside the layers runs in
float32 at least: what a head adds to a stream in half precision is often less than its rounding,
and logits of half precision are a tenth of a nat apart.

Shape legend: S vectors, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

ROWS_PER_PASS = 2048

_HALF = (torch.float16, torch.bfloat16)


class Readout:
    """The way from the stream to log-probabilities.

    Args:
        lm: the frozen model; of half precision, copies of its final norm and unembedding in float32
            are kept while this lives.
    """

    def __init__(self, lm: FrozenLM) -> None:
        self._lm = lm
        self._wide = _widened(lm)
        found = lm.model.get_submodule(lm.family.layers).named_children()
        self._blocks = [block for _, block in found]
        self._rest = _rest_of_output(lm, self._blocks[-1])

    @torch.no_grad()
    def log_probabilities(self, x_SD: Tensor, target_S: Tensor) -> Tensor:
        """Return log p(target | x)_S of the model's final norm and unembedding, float64.

        The layers do not run, so a ledger counts nothing.

        Args:
            x_SD: vectors of the residual stream, in float32 or better where they are sums.
            target_S: token ids.
        """
        parts = []
        for start in range(0, len(x_SD), ROWS_PER_PASS):
            part = slice(start, start + ROWS_PER_PASS)
            log_p_SV = self._unembedded(x_SD[part]).double().log_softmax(-1)
            parts.append(log_p_SV.gather(1, target_S[part, None])[:, 0])
        return torch.cat(parts)

    def _unembedded(self, x_SD: Tensor) -> Tensor:
        """Return logits_SV of the model without its layers."""
        lm = self._lm
        ids_S1 = torch.full((len(x_SD), 1), lm.pad_id, device=lm.device)
        x_S1D = x_SD[:, None].to(torch.float32 if self._wide else lm.dtype)
        with ExitStack() as stack:
            stack.enter_context(_holding(self._wide))
            for block in self._blocks:
                stack.enter_context(_returning(block, x_S1D, self._rest))
            # Not the module's call: a ledger counts those as passes of the whole model.
            return lm.model.forward(input_ids=ids_S1, use_cache=False).logits[:, -1]


def _widened(lm: FrozenLM) -> dict[nn.Parameter, Tensor]:
    """Return, for a model in half precision, what its parameters behind the layers are in float32.

    Empty for other models, and where parameters are quantised or not in place.
    """
    if lm.dtype not in _HALF or getattr(lm.model, "is_quantized", False):
        return {}
    head = lm.model.get_output_embeddings()
    unembedding = None if head is None else getattr(head, "weight", None)
    embedding = lm.model.get_input_embeddings().weight
    found = {}
    for name, parameter in lm.model.named_parameters():
        inside = name.startswith(f"{lm.family.layers}.")
        if inside or (parameter is embedding and parameter is not unembedding):
            continue
        if parameter.is_meta:
            return {}
        if parameter.dtype in _HALF:
            found[parameter] = parameter.detach().float()
    return found


@contextmanager
def _holding(values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Let parameters have other values inside the block."""
    own = {parameter: parameter.data for parameter in values}
    try:
        for parameter, value in values.items():
            parameter.data = value
        yield
    finally:
        for parameter, value in own.items():
            parameter.data = value


def _rest_of_output(lm: FrozenLM, block: nn.Module) -> int | None:
    """Return how many values a layer returns beside the stream; None where it returns it alone."""
    seen: list[Any] = []
    handle = block.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with torch.no_grad():
            ids_11 = torch.full((1, 1), lm.pad_id, device=lm.device)
            lm.model.forward(input_ids=ids_11, use_cache=False)
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
        x = x_S1D.to(stream.device)
        return x if rest is None else (x, *[None] * rest)

    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
