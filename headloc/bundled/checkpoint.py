"""Resumable training state without pickle: safetensors for tensors, JSON for the rest.

A checkpoint is one safetensors file per saved step and a small JSON file that names the current
one. Both are written to a temporary file and moved into place, so that a killed run always leaves
a complete checkpoint behind.

Tensor names: ``model.<parameter>`` and ``optimizer.<kind>.<parameter>``.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headloc.bundled.optimizers import Optimizers
from headloc.errors import HeadlocError

_STATE = "state.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: steps done, its curve so far, seconds spent, and its recipe."""

    step: int
    seconds: float
    curve: tuple[dict[str, float], ...]
    recipe: dict[str, Any]


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def save(folder: Path, model: nn.Module, optimizer: Optimizers, progress: Progress) -> None:
    """Write the state after ``progress.step`` steps; earlier steps' files are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{progress.step:06d}.safetensors"
    temporary = folder / f".{name}.partial"
    save_file(_tensors(model, optimizer), temporary)
    os.replace(temporary, folder / name)
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
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / state.pop("tensors"))
        progress = Progress(**state)
    except Exception as error:
        raise HeadlocError(
            f"The checkpoint in {folder} cannot be read ({error}). "
            "Remove that folder to start over."
        ) from error
    if progress.recipe != json.loads(json.dumps(recipe)):
        raise HeadlocError(
            f"The checkpoint in {folder} was made by another recipe. Choose another output folder, "
            "or train without resuming."
        )
    _restore(model, optimizer, tensors)
    return Progress(progress.step, progress.seconds, tuple(progress.curve), progress.recipe)


def _tensors(model: nn.Module, optimizer: Optimizers) -> dict[str, Tensor]:
    weights = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    return weights | {f"optimizer.{name}": value for name, value in optimizer.tensors().items()}


def _restore(model: nn.Module, optimizer: Optimizers, tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    state = {name: value for name, value in tensors.items() if name.startswith("optimizer.")}
    optimizer.restore({name.removeprefix("optimizer."): value for name, value in state.items()})
