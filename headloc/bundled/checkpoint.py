"""Resumable training state without pickle: safetensors for tensors, JSON for the rest.

A checkpoint is one safetensors file per saved step and a small JSON file that names the current
one, both written atomically, so that a killed run always leaves a complete checkpoint behind.

Tensor names: ``model.<parameter>`` and ``optimizer.<kind>.<parameter>``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from headloc.bundled.optimizers import Optimizers
from headloc.errors import HeadlocError
from headloc.files import file_name, read_json, write_bytes, write_json

_STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, its curve so far, seconds spent, and its recipe."""

    step: int
    seconds: float
    curve: tuple[dict[str, float], ...]
    recipe: dict[str, Any]


def save(folder: Path, model: nn.Module, optimizer: Optimizers, progress: Progress) -> None:
    """Write the state after ``progress.step`` steps; earlier steps' files are removed."""
    name = f"step-{progress.step:06d}.safetensors"
    write_bytes(folder / name, safetensors.torch.save(_tensors(model, optimizer)))
    state = vars(progress) | {"tensors": name}
    write_json(folder / _STATE, state)
    for old in folder.glob("step-*.safetensors"):
        if old.name != name:
            old.unlink()


def load(
    folder: Path, model: nn.Module, optimizer: Optimizers, recipe: dict[str, Any]
) -> Progress | None:
    """Put a saved state back into model and optimizer; None when there is none.

    Raises:
        HeadlocError: when the checkpoint is damaged or belongs to another recipe.
    """
    path = folder / _STATE
    if not path.is_file():
        return None
    state = read_json(path, "training state")
    try:
        tensors = load_file(folder / file_name(state.pop("tensors"), "The file of the tensors"))
        progress = Progress(**state)
        if progress.recipe == json.loads(json.dumps(recipe)):
            _restore(model, optimizer, tensors)
            return replace(progress, curve=tuple(progress.curve))
    # safetensors and torch raise errors of many kinds on what is broken.
    except Exception as error:
        raise HeadlocError(
            f"The checkpoint in {folder} cannot be read ({error}). "
            "Remove that folder to start over."
        ) from error
    raise HeadlocError(
        f"The checkpoint in {folder} was made by another recipe. Choose another output folder, "
        "or train without resuming."
    )


def _tensors(model: nn.Module, optimizer: Optimizers) -> dict[str, Tensor]:
    weights = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    return weights | {f"optimizer.{name}": value for name, value in optimizer.tensors().items()}


def _restore(model: nn.Module, optimizer: Optimizers, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    state = {name: value for name, value in tensors.items() if name.startswith("optimizer.")}
    optimizer.restore({name.removeprefix("optimizer."): value for name, value in state.items()})
