"""Export the sources, build the distributions, and say what is inside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"headloc": "headloc", "conf": "headloc/conf", "analysis": "headloc/analysis"}
"""Folders of the checkout, and where the wheel has them."""

EPOCH = "1767225600"
"""Time of every file of a distribution that is built here: 2026-01-01."""


@dataclass(frozen=True)
class Built:
    """What a release consists of.

    Attributes:
        source: the clean export that everything was built from.
        sdist: the source distribution.
        wheel: the wheel built from the source distribution, as pip and `build` do.
        direct: the wheel built from the export.
    """

    source: Path
    sdist: Path
    wheel: Path
    direct: Path


def tracked() -> list[str]:
    """Return the files that git tracks, and new ones among sources and tests, from the root.

    Raises:
        FileNotFoundError: outside a checkout: a source distribution is itself a clean export.
    """
    if not (ROOT / ".git").exists():
        raise FileNotFoundError(f"{ROOT} is no checkout.")
    known = _listed("--cached")
    new = (name for name in _listed("--others") if name.partition("/")[0] in {*PLACES, "tests"})
    return sorted({name for name in (*known, *new) if (ROOT / name).is_file()})


def _listed(kind: str) -> list[str]:
    listing = ["git", "ls-files", "-z", kind, "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name]


def export(folder: Path) -> Path:
    """Copy what git knows, as it is now, to a folder: nothing ignored comes along."""
    for name in tracked():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
        target.chmod(0o755 if os.access(ROOT / name, os.X_OK) else 0o644)
    return folder


def build(folder: Path, python: str = sys.executable) -> Built:
    """Export the sources and build everything in `folder`, with the tools that are installed."""
    source = export(folder / "source")
    _build(python, source, folder / "dist")
    _build(python, source, folder / "direct", "--wheel")
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    (direct,) = (folder / "direct").glob("*.whl")
    return Built(source, sdist, wheel, direct)


def _build(python: str, source: Path, target: Path, *options: str) -> None:
    done = subprocess.run(
        [python, "-m", "build", "--no-isolation", *options, "--outdir", str(target), str(source)],
        capture_output=True,
        text=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
        umask=0o022,
    )
    if done.returncode:
        raise RuntimeError(f"The build failed:\n{done.stdout}\n{done.stderr}")
    for line in (done.stdout + done.stderr).splitlines():
        # In capitals, or named by class: distutils chats of small things in lower case.
        if "WARNING" in line or "Warning:" in line:
            raise RuntimeError(f"The build warns: {line}\n{done.stdout}\n{done.stderr}")


def files_of_sdist(sdist: Path) -> dict[str, bytes]:
    """Return the files of a source distribution, without its top folder."""
    with tarfile.open(sdist) as file:
        return {
            member.name.partition("/")[2]: file.extractfile(member).read()  # type: ignore[union-attr]
            for member in file.getmembers()
            if member.isfile()
        }


def files_of_wheel(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel."""
    with ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith("/")}


def installed_name(name: str) -> str | None:
    """Return where the wheel has a file of the checkout; None for what is not installed."""
    top, _, rest = name.partition("/")
    return f"{PLACES[top]}/{rest}" if top in PLACES else None
