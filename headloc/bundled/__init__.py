"""The small language model that ships with headloc, and the recipe that trained it.

Importing this package is cheap: nothing here loads torch or transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.errors import HeadlocError

if TYPE_CHECKING:
    from headloc.lm import FrozenLM

__all__ = ["BUNDLED_NAME", "load_bundled", "model_dir"]

BUNDLED_NAME = "headloc/bundled"
"""What circuits call the bundled model, wherever headloc is installed."""


def load_bundled(**options: Any) -> FrozenLM:
    """The bundled model with its heads in reach; options are those of `load_lm` (dtype, device).

    Raises:
        HeadlocError: when the weights are not part of this installation.
    """
    from dataclasses import replace

    from headloc.lm import load_lm

    lm = load_lm(str(model_dir()), local_only=True, **options)
    lm.source = replace(lm.source, name=BUNDLED_NAME)
    return lm


def model_dir() -> Path:
    """The folder of the bundled model, in hub format.

    Raises:
        HeadlocError: when the weights are not part of this installation.
    """
    folder = Path(__file__).parent / "model"
    if not (folder / "model.safetensors").is_file():
        raise HeadlocError(
            f"The bundled model is missing from {folder}. Reinstall headloc, or train it again "
            "with `headloc bundled train`."
        )
    return folder
