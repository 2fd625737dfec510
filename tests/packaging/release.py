"""Build a release and prove that it can be installed and used.

    python -m tests.packaging.release [--folder build/release]

Source distribution and wheel are built from a clean export, the wheel is installed with every
dependency at its locked version into an environment that knows nothing of the checkout, and used
from an unrelated folder.  The distributions are left in FOLDER/dist.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from headloc import __version__
from tests.packaging.building import ROOT, build, files_of_sdist, files_of_wheel, tracked
from tests.packaging.installation import (
    ReleaseError,
    Shell,
    check,
    check_configuration,
    check_places,
    check_readers,
    check_run,
    clean,
    fresh,
    read_only,
    snapshot,
    working_folder,
    writable,
)

IMPORT_SECONDS = 0.3
"""What `import headloc` may take: the median of `IMPORTS` processes."""

HELP_SECONDS = 1.0
"""What a help text may take, Python's own start included: the median of `IMPORTS` processes."""

IMPORTS = 11

CONSUMER = """\
from headloc import AddK, Circuit, load_bundled
from headloc.analysis import auroc
from headloc.gates import TopKGates

lm = load_bundled()
task = AddK(k_max=5)
reveal_type(task.name)
reveal_type(lm.layout)
reveal_type(Circuit.load)
reveal_type(TopKGates)
reveal_type(auroc)
AddK(k_max="five")
"""
"""A program of a user's, whose last line is wrong."""

MYPY = """\
[mypy]
follow_imports = silent
[mypy-torch.*,transformers.*,lightning.*,numpy.*]
follow_imports = skip
"""
"""Only headloc's own types are asked for: those of the others take a minute to read."""


def main() -> None:
    """Run the whole check; ends with status 1 and one message where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "release")
    parser.add_argument("--keep", action="store_true", help="keep the environment")
    given = parser.parse_args()
    try:
        release(given.folder.resolve(), keep=given.keep)
    except ReleaseError as error:
        sys.exit(f"release: {error}")


def release(folder: Path, *, keep: bool = False) -> None:
    """Build and check a release in a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    with step("build"):
        built = build(folder)
        sdist, wheel = files_of_sdist(built.sdist), files_of_wheel(built.wheel)
        missing = sorted(set(tracked()) - set(sdist))
        check(not missing, f"the source distribution lacks {', '.join(missing)}")
        check(wheel == files_of_wheel(built.direct), "the wheel depends on what it is built from")
    for path, files in ((built.sdist, sdist), (built.wheel, wheel)):
        print(f"  {path.name}: {path.stat().st_size / 1e6:.2f} MB, {len(files)} files")
    place = fresh(folder / "environment")
    with step("install"):
        place.pip("install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt",
                  built.wheel)  # fmt: skip
    place.pip("check")
    # Bytecode as a usual installation has it; of the other packages only what is imported.
    compileall.compile_dir(place.package, quiet=1)
    before = snapshot(place.package)
    read_only(place.package)
    # Outside the checkout, whose folders a configuration search might climb.
    with TemporaryDirectory() as elsewhere:
        shell = Shell(place, working_folder(Path(elsewhere)))
        for name, run in checks().items():
            with step(name):
                run(shell)
    writable(place.package)
    check(snapshot(place.package) == before, "a command wrote into the package")
    with step("uninstall"):
        place.pip("uninstall", "--quiet", "--yes", "headloc")
        check(not place.leftovers(), f"uninstalling leaves {place.leftovers()}")
        check(not list(place.packages.rglob("*headloc*")), "uninstalling leaves files")
    for name in ("source", "direct") if keep else ("source", "direct", "environment"):
        shutil.rmtree(folder / name)
    print(f"headloc {__version__} is fit for release: {folder / 'dist'}")


def checks() -> dict[str, Callable[[Shell], None]]:
    """Return what is asked of the installation, by name."""
    return {
        "places": check_places,
        "import": check_import,
        "help": check_help,
        "types": check_types,
        "configuration": lambda shell: check_configuration(shell, __version__),
        "localize": check_run,
        "analyze, doctor, references": check_readers,
    }


def check_import(shell: Shell) -> None:
    """`import headloc` is fast: measured within the process, without Python's own start."""
    timed = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
    for code, bound in (("import headloc", IMPORT_SECONDS), ("from headloc import AddK", None)):
        seconds = [float(shell.python("-P", "-c", timed.format(code))) for _ in range(IMPORTS)]
        middle = statistics.median(seconds)
        print(f"  {code}: {middle:.4f} s (median of {IMPORTS}, "
              f"{min(seconds):.4f} to {max(seconds):.4f})")  # fmt: skip
        check(bound is None or middle < bound, f"{code} takes {middle:.2f} s, above {bound} s")


def check_help(shell: Shell) -> None:
    """Help is there at once: measured from outside, as who types it waits."""
    for words in ((), ("localize",)):
        seconds = []
        for _ in range(IMPORTS):
            begun = time.perf_counter()
            shell.headloc(*words, "--help")
            seconds.append(time.perf_counter() - begun)
        command = " ".join(("headloc", *words, "--help"))
        middle = statistics.median(seconds)
        print(f"  {command}: {middle:.2f} s (median of {IMPORTS}, "
              f"{min(seconds):.2f} to {max(seconds):.2f})")  # fmt: skip
        check(middle < HELP_SECONDS, f"{command} takes {middle:.2f} s, above {HELP_SECONDS} s")


def check_types(shell: Shell) -> None:
    """mypy sees the annotations of the installed package, and a mistake of a user's."""
    # Elsewhere: mypy takes files of its working folder for sources, and the shell's are misleading.
    with TemporaryDirectory() as folder:
        (Path(folder) / "consumer.py").write_text(CONSUMER)
        (Path(folder) / "mypy.ini").write_text(MYPY)
        command = [sys.executable, "-m", "mypy", "--python-executable", str(shell.place.python),
                   "--cache-dir", os.devnull, "consumer.py"]  # fmt: skip
        done = subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True)
    revealed = re.findall(r'Revealed type is "([^"]*)"', done.stdout)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    check(
        len(revealed) == 5
        and revealed[0] == "str"
        and all(kind != "Any" for kind in revealed)
        and len(errors) == 1
        and 'incompatible type "str"; expected "int"' in errors[0],
        f"mypy does not see the types of the installed package:\n{done.stdout}{done.stderr}",
    )


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say what is done and how long it took."""
    begun = time.monotonic()
    yield
    print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main()
