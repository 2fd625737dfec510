"""An environment that headloc is installed into, and what must hold there.

Every command runs in a folder that has nothing to do with the sources, beside files and folders
whose names a careless import or configuration search would pick up.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

DECOYS = {
    "conf/localize.yaml": "seed: 99\nmine: true\n",
    "conf/__init__.py": "raise RuntimeError('the wrong conf')\n",
    "analysis/__init__.py": "raise RuntimeError('the wrong analysis')\n",
    "headloc.py": "raise RuntimeError('the wrong headloc')\n",
    "tests/__init__.py": "raise RuntimeError('the wrong tests')\n",
}
"""Files of the working folder that must not be taken for headloc's."""

EXPERIMENT = """\
# @package _global_
defaults:
  - override /gates: l1
seed: 7
"""

_DROP_CAPABILITY, _OVERRIDE_PERMISSIONS = 24, 1  # prctl(2), capabilities(7)


class ReleaseError(RuntimeError):
    """Something of a release does not hold."""


@dataclass(frozen=True)
class Installation:
    """A virtual environment.

    Attributes:
        folder: its folder.
    """

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def console(self) -> Path:
        """Its `headloc`."""
        return self.folder / "bin" / "headloc"

    @property
    def packages(self) -> Path:
        """Its folder of packages."""
        (found,) = self.folder.glob("lib/python3.*/site-packages")
        return found

    @property
    def package(self) -> Path:
        """The installed headloc."""
        return self.packages / "headloc"

    def pip(self, *arguments: object) -> str:
        """Run pip, of the environment that runs this, on this environment."""
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check",
                   "--python", str(self.python), *map(str, arguments)]  # fmt: skip
        return _run(command, self.folder, clean()).stdout

    def leftovers(self) -> list[Path]:
        """Return what an installed headloc has outside its own folder, or leaves there."""
        found = [*self.packages.glob("*headloc*"), *(self.folder / "bin").glob("*headloc*")]
        return sorted(path.relative_to(self.folder) for path in found)


def clean() -> dict[str, str]:
    """Return this process's environment without what leads Python or headloc to the sources."""
    gone = {
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "HEADLOC_TRACEBACK",
        "COVERAGE_PROCESS_START",
    }
    kept = {key: value for key, value in os.environ.items() if key not in gone}
    return {**kept, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


def fresh(folder: Path) -> Installation:
    """Make an empty environment, which sees no packages of another."""
    venv.create(folder, with_pip=False, symlinks=True)
    return Installation(folder)


def lend_packages(place: Installation) -> None:
    """Let an environment see the packages of the running one, but no source of headloc.

    The hooks of an editable installation lie in .pth files, which Python reads in the environment's
    own folder only.
    """
    folders = [path for path in sys.path if Path(path).name == "site-packages"]
    (place.packages / "lent.pth").write_text("".join(f"{path}\n" for path in folders))


def working_folder(folder: Path) -> Path:
    """Make a folder full of names that are headloc's too."""
    for name, text in DECOYS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    experiments = folder / "own" / "experiment"
    experiments.mkdir(parents=True)
    (experiments / "mine.yaml").write_text(EXPERIMENT)
    return folder


def read_only(folder: Path) -> None:
    """Take the right to write away from everything in a folder."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)


def writable(folder: Path) -> None:
    """Give the right to write back."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)


def _obey_permissions() -> None:
    """Make permissions count for root, too, in a process about to start."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(_DROP_CAPABILITY, _OVERRIDE_PERMISSIONS, 0, 0, 0)


@dataclass(frozen=True)
class Shell:
    """Runs commands of an installation in a folder.

    Attributes:
        place: the installation.
        folder: where they run.
    """

    place: Installation
    folder: Path

    def headloc(self, *arguments: object) -> str:
        """Run the console command; returns what it prints."""
        return self._run([self.place.console, *arguments])

    def python(self, *arguments: object) -> str:
        """Run the interpreter; returns what it prints."""
        return self._run([self.place.python, *arguments])

    def _run(self, command: list[object]) -> str:
        return _run([str(part) for part in command], self.folder, clean(), obey=True).stdout


def _run(
    command: list[str], folder: Path, environment: Mapping[str, str], *, obey: bool = False
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=_obey_permissions if obey else None,
    )
    if done.returncode:
        raise ReleaseError(
            f"{' '.join(command)} ended with status {done.returncode}:\n"
            f"{done.stdout}\n{done.stderr}"
        )
    return done


def check(holds: bool, what: str) -> None:
    """Raise when something does not hold."""
    if not holds:
        raise ReleaseError(what)


WHERE = """\
import json, sys
import headloc, headloc.analysis, headloc.conf
from headloc.bundled import model_dir
from headloc.cli import config_dir
assert "torch" not in sys.modules
files = [module.__file__ for module in (headloc, headloc.analysis, headloc.conf)]
print(json.dumps([*files, str(config_dir()), str(model_dir())]))
"""


def check_places(shell: Shell) -> None:
    """The package in use is the installed one, with its configuration and its model."""
    for path in map(Path, json.loads(shell.python("-P", "-c", WHERE))):
        check(path.is_relative_to(shell.place.package), f"{path} is not the installed package's")


def check_configuration(shell: Shell, version: str) -> None:
    """Help, version and configurations are those that were installed, and the user's own."""
    check(shell.headloc("--version") == f"headloc {version}\n", "--version is wrong")
    check("headloc COMMAND" in shell.headloc("--help"), "--help is wrong")
    check("headloc COMMAND" in shell.python("-P", "-m", "headloc", "--help"), "-m headloc is wrong")
    job = yaml.safe_load(shell.headloc("localize", "--cfg", "job", "gates=l1"))
    check(job["seed"] == 0 and "mine" not in job, "a conf/ of the working folder was read")
    check(job["gates"]["_target_"] == "headloc.gates.L1Gates", "gates=l1 is wrong")
    own = shell.headloc("localize", "--config-dir", "own", "experiment=mine", "--cfg", "job")
    job = yaml.safe_load(own)
    check(job["seed"] == 7 and "L1" in job["gates"]["_target_"], "--config-dir is not read")


def check_run(shell: Shell) -> None:
    """A localization runs, its circuit can be shown, and it has its report and pictures."""
    shell.headloc("localize", "debug=fast", "verdict.replicates=0", "output_dir=run")
    run = shell.folder / "run"
    for name in ("circuit/circuit.json", "report.html", "metrics.json", "pictures/heads.svg"):
        check((run / name).is_file(), f"localize wrote no {name}")
    shown = shell.headloc("circuit", "show", "run/circuit")
    check("headloc/bundled" in shown and "add_k" in shown, "circuit show is wrong")


def check_readers(shell: Shell) -> None:
    """The rest that comes with templates, a model and data of its own."""
    shell.headloc("analyze", "circuit=run/circuit", "analysis=extraction", "task=labels",
                  "mean_prompts=8", "analysis.prompts=16", "analysis.vocabulary_prompts=8",
                  "analysis.other_heads=2", "logger=none", "output_dir=read")  # fmt: skip
    check((shell.folder / "read" / "report.html").is_file(), "analyze wrote no report")
    check("known family" in shell.headloc("doctor"), "doctor is wrong")
    check("hu2025" in shell.headloc("reproduce", "--help"), "the references are missing")
    loaded = "import headloc; print(len(list(headloc.load_bundled().layout)))"
    check(int(shell.python("-P", "-c", loaded)) > 0, "the bundled model is wrong")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
