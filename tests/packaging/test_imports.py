"""Importing headloc is cheap: what is heavy is imported where it is used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "accelerate", "huggingface_hub", "hydra", "jinja2", "lightning", "matplotlib", "numpy",
    "omegaconf", "rich", "safetensors", "tokenizers", "torch", "torchmetrics", "transformers",
    "wandb", "yaml",
}  # fmt: skip
MODULES = 60
"""Modules beyond those of a bare interpreter: it takes under 40, none of them of other packages."""


def loaded(code: str) -> set[str]:
    """Return the modules that are loaded after some code in a fresh process."""
    show = f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


def test_importing_headloc_loads_a_handful_of_modules_of_the_standard_library() -> None:
    new = loaded("import headloc, headloc.lm, headloc.analysis, headloc.cli") - loaded("")
    assert not HEAVY & new
    assert len(new) < MODULES
    outside = {name.partition(".")[0] for name in new} - set(sys.stdlib_module_names)
    assert outside == {"headloc"}


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("from headloc import AddK, Labels, Pairs, Template", {"numpy"}),
        ("from headloc import HeadId, HeadlocError", set()),
        ("from headloc.interop import read_heads", {"numpy"}),
        ("from headloc.references import load_reference", {"numpy"}),
        ("from headloc.bundled import model_dir; model_dir()", set()),
    ],
)
def test_what_needs_no_model_loads_no_torch(code: str, allowed: set[str]) -> None:
    assert HEAVY & loaded(code) <= allowed
