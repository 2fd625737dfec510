"""The wheel holds everything headloc needs, nothing generic, and works from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]


def pip(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source") / "headloc"
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for folder in ("headloc", "conf", "analysis"):
        shutil.copytree(ROOT / folder, source / folder, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", target, source)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with ZipFile(wheel) as file:
        return set(file.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


@pytest.fixture
def shell(installed: Path, tmp_path: Path) -> Shell:
    """Run Python on the installed wheel in a folder with a conf/ and an analysis/ of its own."""
    for folder in ("conf", "analysis"):
        (tmp_path / folder).mkdir()
    (tmp_path / "conf" / "localize.yaml").write_text("seed: 99\nmine: true\n")
    (tmp_path / "conf" / "__init__.py").write_text("raise RuntimeError('the wrong conf')\n")
    (tmp_path / "analysis" / "__init__.py").write_text("raise RuntimeError('wrong analysis')\n")
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    return run


def sources(folder: str, pattern: str) -> set[str]:
    base = ROOT / folder
    found = (path.relative_to(base).as_posix() for path in base.rglob(pattern))
    return {path for path in found if "__pycache__" not in path and (base / path).is_file()}


@pytest.mark.parametrize(
    ("folder", "pattern", "place"),
    [
        ("conf", "*.yaml", "headloc/conf"),
        ("analysis", "*.py", "headloc/analysis"),
        ("headloc", "*.py", "headloc"),
        ("headloc", "*.json", "headloc"),
        ("headloc", "*.j2", "headloc"),
        ("headloc/bundled/model", "*", "headloc/bundled/model"),
    ],
)
def test_every_source_is_in_the_wheel(
    folder: str, pattern: str, place: str, names: set[str]
) -> None:
    wanted = {f"{place}/{path}" for path in sources(folder, pattern)}
    assert wanted
    assert wanted <= names


def test_the_wheel_holds_the_model_the_marker_and_the_licence(names: set[str]) -> None:
    assert {"headloc/py.typed", "headloc/bundled/model/model.safetensors"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_nothing_generic_is_installed(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"headloc"}
    assert not any("test" in Path(name).parts for name in names)


def test_the_console_command_is_declared(installed: Path) -> None:
    (metadata,) = installed.glob("headloc-*.dist-info")
    assert "headloc = headloc.cli:main" in (metadata / "entry_points.txt").read_text()


def test_the_shipped_configuration_is_used_in_a_folder_with_a_conf_of_its_own(
    shell: Shell, installed: Path
) -> None:
    help_text = shell("-m", "headloc", "--help")
    assert help_text.returncode == 0, help_text.stderr
    assert "headloc COMMAND" in help_text.stdout
    done = shell("-m", "headloc", "localize", "--cfg", "job", "gates=l1")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["seed"] == 0
    assert "mine" not in shown
    assert shown["gates"]["_target_"] == "headloc.gates.L1Gates"


def test_the_package_in_use_is_the_installed_one(shell: Shell, installed: Path) -> None:
    code = (
        "import sys, headloc, headloc.analysis; from headloc.cli import config_dir;"
        "assert 'torch' not in sys.modules;"
        "print(headloc.__file__, headloc.analysis.__file__, config_dir(), sep='\\n')"
    )
    done = shell("-P", "-c", code)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert Path(line).is_relative_to(installed)


def test_the_bundled_model_is_found_and_whole(shell: Shell, installed: Path) -> None:
    done = shell("-c", "from headloc.bundled import model_dir; print(model_dir())")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(installed)
    for path in (ROOT / "headloc" / "bundled" / "model").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
