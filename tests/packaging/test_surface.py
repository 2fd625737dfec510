"""The public surface is what was agreed on, documented, and every change of it is seen."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module

import pytest

from tests.packaging import surface
from tests.packaging.building import ROOT

FROZEN = json.loads(surface.FILE.read_text("utf-8"))


def test_the_public_surface_is_as_it_was() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.packaging.surface"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout or done.stderr


@pytest.mark.parametrize("package", surface.PACKAGES)
def test_a_package_offers_what_it_lists_and_lists_it_in_order(package: str) -> None:
    module = import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    with pytest.raises(AttributeError):
        _ = module.nothing_of_that_name


def test_everything_public_is_documented() -> None:
    bare = [
        path
        for path, value in surface.public().items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and not value.__doc__
    ]
    assert not bare
    # A dataclass without a docstring gets its signature for one.
    assert not [
        path
        for path, value in surface.public().items()
        if inspect.isclass(value) and (value.__doc__ or "").startswith(f"{value.__name__}(")
    ]


def example(limit: int = 3) -> int:
    return limit


class Example:
    def __init__(self, width: float = 1.0) -> None:
        self.width = width

    def grow(self, by: int, *, slowly: bool = False) -> int:
        return by


def test_names_signatures_defaults_and_members_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert surface.described(example) == ["function(limit: 'int' = 3) -> 'int'"]
    monkeypatch.setattr(Example, "__module__", "headloc.example")
    assert surface.described(Example) == [
        "class(width: 'float' = 1.0) -> 'None'",
        "def grow(self, by: 'int', *, slowly: 'bool' = False) -> 'int'",
    ]


def test_a_change_is_told_under_its_name_and_nothing_else() -> None:
    now = json.loads(json.dumps(FROZEN))
    now["python"]["headloc.load_lm"] = ["function() -> 'FrozenLM'"]
    del now["python"]["headloc.HeadId"]
    now["commands"]["conf/gates/new.yaml"] = ["width=3"]
    now["files"]["localize: heads.csv"].remove("gate")
    told = surface.difference(surface.text(FROZEN), surface.text(now)).splitlines()
    assert [line for line in told if not line.startswith("  ")] == [
        "conf/gates/new.yaml (new)",
        "localize: heads.csv (changed)",
        "headloc.HeadId (gone)",
        "headloc.load_lm (changed)",
    ]
    assert "  - gate" in told
    assert "  + width=3" in told
    assert surface.difference(surface.text(FROZEN), surface.text(FROZEN)) == ""


def test_commands_options_and_files_are_frozen_with_their_defaults() -> None:
    assert "seed=0" in FROZEN["commands"]["conf/localize.yaml"]
    assert {"prompts", "seed", "output"} <= set(FROZEN["commands"]["headloc circuit diff"])
    assert FROZEN["files"]["localize: heads.csv"][:3] == ["layer", "head", "gate"]
    assert "accuracy/circuit/low" in FROZEN["files"]["localize: metrics.json"]
    assert "schema_version" in FROZEN["files"]["localize: circuit/circuit.json"]
    assert "gates" in FROZEN["files"]["localize: circuit/gates.safetensors"]
