"""A machine on which nobody has an account with Weights & Biases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def without_account(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Take away key and netrc, and put W&B's own files under a folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(folder / "own"))
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
