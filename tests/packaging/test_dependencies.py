"""pyproject.toml, its lower bounds and the lock say the same of the dependencies."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.packaging.building import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {
    name: [Requirement(line) for line in lines]
    for name, lines in PROJECT["optional-dependencies"].items()
}
ACCELERATOR = ("cuda-", "nvidia-", "triton")
"""What a torch that runs on a GPU needs; the lock is of the torch that the tests run on."""


def pinned(name: str) -> dict[str, Version]:
    """Return the exact versions that a constraints file names."""
    lines = (ROOT / name).read_text().splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            package, exactly, version = line.partition("==")
            assert exactly, line
            assert canonicalize_name(package) not in found, f"{package} is named twice"
            found[canonicalize_name(package)] = Version(version)
    return found


LOCK = pinned("constraints.txt")
LOWEST = pinned("tests/packaging/lowest.txt")


def bound(requirement: Requirement) -> Version:
    """Return the lower bound of a range."""
    (lowest,) = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
    return lowest


def with_bounds() -> dict[str, Requirement]:
    """Return what headloc needs to run, extras included; not what its tests need."""
    extras = [one for name in ("large", "joblib", "submitit") for one in EXTRAS[name]]
    return {canonicalize_name(one.name): one for one in (*RUNTIME, *extras)}


def test_every_lower_bound_is_tested() -> None:
    assert {name: bound(one) for name, one in with_bounds().items()} == LOWEST


def test_the_lock_lies_within_every_range() -> None:
    for one in (*with_bounds().values(), *EXTRAS["dev"]):
        name = canonicalize_name(one.name)
        if name != "headloc":
            assert one.specifier.contains(LOCK[name]), f"{one} and {LOCK[name]}"


def test_the_lock_is_above_every_lower_bound() -> None:
    assert all(LOWEST[name] <= LOCK[name] for name in LOWEST)


def closure() -> dict[str, str]:
    """Return name and version of all that `headloc[dev]` needs here, as it is installed."""
    found: dict[str, str] = {}
    todo = [("headloc", frozenset({"dev", "large", "joblib", "submitit"}))]
    seen = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name != "headloc":
            found[name] = distribution(name).version
        for line in requires(name) or ():
            one = Requirement(line)
            wanted = [{"extra": extra} for extra in (*extras, "")]
            if one.marker is None or any(one.marker.evaluate(extra) for extra in wanted):
                todo.append((canonicalize_name(one.name), frozenset(one.extras)))
    return {name: version for name, version in found.items() if not name.startswith(ACCELERATOR)}


def test_the_lock_names_every_package_that_is_needed_and_no_other() -> None:
    try:
        needed = {name: Version(version).public for name, version in closure().items()}
    except PackageNotFoundError as error:
        raise AssertionError(f"{error.name} is needed and not installed: make install") from error
    assert needed == {name: version.public for name, version in LOCK.items()}


def imported() -> set[str]:
    """Return the top-level modules that the package imports anywhere."""
    found = set()
    for folder in ("headloc", "analysis", "conf"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"headloc"}


def test_what_is_imported_is_declared() -> None:
    """Nothing is used that comes along with another package by chance."""
    homes = packages_distributions()
    declared = set(with_bounds())
    for module in imported():
        assert declared & {canonicalize_name(home) for home in homes[module]}, module


def test_what_is_declared_is_imported_or_a_plugin() -> None:
    homes = packages_distributions()
    used = {canonicalize_name(home) for module in imported() for home in homes[module]}
    # Hydra finds its launchers itself; transformers uses accelerate for `model.device_map`.
    plugins = {"hydra-joblib-launcher", "hydra-submitit-launcher", "accelerate"}
    assert set(with_bounds()) - used <= plugins


def test_the_oldest_python_is_the_one_that_ruff_and_mypy_check_for() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert PROJECT["requires-python"] == ">=3.11"
    assert settings["tool"]["mypy"]["python_version"] == "3.11"
    assert settings["tool"]["ruff"]["target-version"] == "py311"
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert versions[0] == "3.11"
