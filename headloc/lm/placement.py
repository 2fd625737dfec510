"""Models whose parts lie on several devices, or are brought in from the host or from disk.

accelerate's hooks move activations between devices and weights in and out; what is left here is to
know where token ids go, and to read a weight that is not in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headloc.errors import HeadlocError, suggest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def check_device_map(device_map: Any) -> None:
    """Refuse a device map that nobody can follow.

    Raises:
        HeadlocError: for an unknown name, or without the accelerate package.
    """
    if not isinstance(device_map, Mapping) and device_map not in MAPS:
        raise HeadlocError(
            f"model.device_map={device_map!r} is unknown. {suggest(str(device_map), MAPS)} A map "
            "from module names to devices will do as well."
        )
    if find_spec("accelerate") is None:
        raise HeadlocError(
            "model.device_map needs the accelerate package: pip install 'headloc[large]'."
        )


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where token ids go: the device on which the embeddings are looked up."""
    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    device = next(embeddings.parameters()).device
    return device if device.type != "meta" else model.device


def in_place(model: PreTrainedModel, name: str) -> Tensor | None:
    """Return a parameter by its name, read from the host or from disk when it is not in place.

    None for one that stands for another (tied weights) or that has no values at all.
    """
    parameter = model.get_parameter(name)
    if parameter.device.type != "meta":
        return parameter
    if name in (getattr(model, "all_tied_weights_keys", None) or {}):
        return None
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if not hasattr(module, "_hf_hook"):
        return None
    from accelerate.utils import align_module_device

    with align_module_device(module, torch.device("cpu")):
        return getattr(module, leaf).detach().clone()
