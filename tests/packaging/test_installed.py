"""The source distribution, installed into a fresh environment, works from any folder.

The wheel is installed with all its dependencies by `make release`; here the dependencies are lent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headloc import __version__
from tests.packaging.building import Built, files_of_wheel
from tests.packaging.installation import (
    Installation,
    Shell,
    check_configuration,
    check_places,
    check_run,
    fresh,
    lend_packages,
    read_only,
    snapshot,
    working_folder,
    writable,
)


@pytest.fixture(scope="module")
def place(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    place = fresh(tmp_path_factory.mktemp("environment") / "venv")
    lend_packages(place)
    place.pip("install", "--quiet", "--ignore-installed", "--no-deps", "--no-index",
              "--no-build-isolation", built.sdist)  # fmt: skip
    read_only(place.packages)
    yield place
    writable(place.packages)


@pytest.fixture
def shell(place: Installation, tmp_path: Path) -> Shell:
    return Shell(place, working_folder(tmp_path))


def test_the_installed_files_are_those_of_the_wheel(place: Installation, built: Built) -> None:
    wanted = files_of_wheel(built.wheel)
    for name, content in snapshot(place.package).items():
        if not name.endswith(".pyc"):
            assert wanted.pop(f"headloc/{name}") == content, name
    assert all(".dist-info/" in name for name in wanted)


def test_the_package_in_use_is_the_installed_one(shell: Shell) -> None:
    check_places(shell)


def test_help_and_configuration_are_headlocs_own(shell: Shell) -> None:
    check_configuration(shell, __version__)


def test_a_localization_runs_beside_misleading_names_and_writes_into_no_package(
    shell: Shell, place: Installation
) -> None:
    before = snapshot(place.package)
    check_run(shell)
    assert snapshot(place.package) == before


def test_nothing_is_left_when_it_is_removed(built: Built, tmp_path: Path) -> None:
    place = fresh(tmp_path / "venv")
    before = set(place.folder.rglob("*"))
    place.pip("install", "--quiet", "--no-deps", "--no-index", built.wheel)
    assert place.console.is_file()
    assert len(place.leftovers()) == 3
    place.pip("uninstall", "--quiet", "--yes", "headloc")
    assert place.leftovers() == []
    assert set(place.folder.rglob("*")) == before
