"""The versions that a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from headloc import __version__

_PACKAGES = (
    "torch",
    "transformers",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "wandb",
    "safetensors",
    "tokenizers",
    "numpy",
)


def package_versions() -> dict[str, str]:
    """Return the versions of headloc, of Python and of the packages that figures depend on."""
    found = {"headloc": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
