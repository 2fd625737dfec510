"""From a recipe to a model that can ship: train, measure, write the card."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headloc.bundled.card import write_card
from headloc.bundled.checks import CheckSizes, measure
from headloc.bundled.figures import Figure
from headloc.bundled.recipe import Recipe
from headloc.bundled.training import Reporter, train
from headloc.bundled.vocabulary import attempts
from headloc.files import read_json, write_json


def build(
    recipe: Recipe,
    output_dir: Path,
    *,
    resume: bool = True,
    progress: Reporter | None = None,
    sizes: CheckSizes | None = None,
) -> Path:
    """Train by ``recipe`` into ``output_dir`` and return the model folder, its card included.

    Raises:
        HeadlocError: when the checkpoint found belongs to another recipe or is damaged.
    """
    folder = train(recipe, output_dir, resume=resume, progress=progress)
    document(folder, recipe, output_dir, sizes=sizes)
    return folder


def document(
    folder: Path, recipe: Recipe, output_dir: Path, *, sizes: CheckSizes | None = None
) -> dict[str, Figure]:
    """Measure a trained model and write ``figures.json`` and its card."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    figures = measure(model, AutoTokenizer.from_pretrained(folder), sizes=sizes)
    rows = {name: figure.to_dict() for name, figure in figures.items()}
    write_json(output_dir / "figures.json", rows)
    curve = read_json(output_dir / "curve.json", "training curve")
    write_card(folder, recipe, figures, curve, model.num_parameters(), attempts())
    return figures
