"""What modules were given and have put out at one column: how the stream's parts are seen.

Shapes: B rows, T columns, D width of a module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from headloc.errors import UnsupportedModelError

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


class Calls:
    """Inputs and outputs of some modules at one column, of the latest forward."""

    def __init__(self, rows: int, column: int) -> None:
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._rows, self._column = rows, column

    def keep(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states", kwargs.get("input"))
        out = output[0] if isinstance(output, tuple) else output
        if isinstance(given, Tensor) and isinstance(out, Tensor):
            self.seen[name] = (self._last(given), self._last(out))

    def _last(self, value: Tensor) -> Tensor:
        # OPT flattens its tokens; the unembedding may be given the last column alone.
        value = value.unflatten(0, (self._rows, -1)) if value.ndim == 2 else value
        column = self._column if value.shape[1] > self._column else -1
        return value[:, column].detach().clone()


@contextmanager
def recording(lm: FrozenLM, names: Sequence[str], calls: Calls) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            hook = partial(calls.keep, name)
            module = lm.model.get_submodule(name)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def norms_of(lm: FrozenLM, block: str) -> list[str]:
    """Return the names of a layer's norms, those within its attention left out."""
    attention = next((s.attention for s in lm.sites if s.block == block), "")
    inside = lm.model.get_submodule(block).named_modules()
    names = [f"{block}.{name}" for name, module in inside if "Norm" in type(module).__name__]
    return [n for n in names if not (attention and n.startswith(f"{attention}."))]


def outer_modules(lm: FrozenLM) -> list[str]:
    """Return the names of modules beside the layers that may be the final norm, and the head."""
    stack = f"{lm.family.layers}."
    names = [
        name
        for name, module in lm.model.named_modules()
        if "Norm" in type(module).__name__ and not name.startswith(stack)
    ]
    return [*names, head_name(lm)]


def head_name(lm: FrozenLM) -> str:
    head = lm.model.get_output_embeddings()
    for name, module in lm.model.named_modules():
        if module is head:
            return name
    raise UnsupportedModelError("This model has no unembedding, so logits have no parts.")
