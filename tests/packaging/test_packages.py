"""Every folder of the sources that holds Python files is a package of the distribution."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"headloc": "headloc", "conf": "headloc.conf", "analysis": "headloc.analysis"}


def folders_with_code() -> set[str]:
    """Return the dotted names of all folders that hold Python files, as they are installed."""
    found = set()
    for folder, package in PLACES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *parts)))
    return found


def test_every_folder_with_code_is_listed_once() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = settings["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == folders_with_code()
    assert settings["package-dir"] == {package: folder for folder, package in PLACES.items()}
