"""`headloc bundled train`: train the bundled model again from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headloc.commands.build import plain
from headloc.errors import HeadlocError
from headloc.files import usable_output_dir

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: DictConfig, output_dir: Path) -> Path:
    """Train, measure and write a model folder; an interrupted training goes on.

    Raises:
        HeadlocError: for a hyper-parameter that the recipe does not have.
    """
    settings = plain(cfg)
    folder = usable_output_dir(output_dir)
    if not isinstance(settings["recipe"], dict):
        raise HeadlocError(
            "recipe must be a group of options, as in recipe.optimisation.steps=100."
        )
    from headloc.bundled.recipe import Recipe
    from headloc.bundled.release import build
    from headloc.reporting.console import Console

    try:
        recipe = Recipe.from_dict(settings["recipe"])
    except (TypeError, ValueError) as error:
        raise HeadlocError(f"The recipe has a value of the wrong type: {error}.") from error
    console = Console()
    with console.stage("training the bundled model") as show:

        def progress(done: int, total: int, averages: dict[str, float]) -> None:
            show(done, total)

        path = build(recipe, folder, resume=bool(settings["resume"]), progress=progress)
    console.say(f"model  {path}")
    return path
