"""A plain transformers model for the length of a block: its heads located, nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from headloc.errors import CircuitError
from headloc.lm.frozen import FrozenLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def located(model: FrozenLM | PreTrainedModel) -> Iterator[FrozenLM]:
    """Yield the model with its heads located.

    A plain model is in eval mode inside the block, as circuits are found in that mode; afterwards
    it trains or not as before.  Which of its parameters require grad is never changed.

    Raises:
        CircuitError: when it is something else than a model.
        UnsupportedModelError: when its heads cannot be located.
    """
    if isinstance(model, FrozenLM):
        yield model
        return
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise CircuitError(
            f"A circuit applies to a causal language model of transformers or a FrozenLM, not to "
            f"{type(model).__name__}. Give the model that AutoModelForCausalLM.from_pretrained or "
            "headloc.load_lm returns."
        )
    training = [module for module in model.modules() if module.training]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        lm = FrozenLM(model)
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
    try:
        yield lm
    finally:
        for module in training:
            module.training = True
