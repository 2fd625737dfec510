"""Help answers at once, without loading anything heavy, and tells every option."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from headloc.cli import COMMANDS, config_dir
from tests.commands.runs import Headloc

HEAVY = {"torch", "transformers", "lightning", "hydra", "omegaconf", "numpy", "wandb", "matplotlib"}
NAMES = [command.words for command in COMMANDS]
LOADED = (
    "import json, sys; from headloc.cli import main; status = main(sys.argv[1:]);"
    "print(json.dumps([status, sorted(sys.modules)]), file=sys.stderr)"
)


@pytest.mark.parametrize("words", [(), *NAMES], ids=lambda words: "-".join(words) or "all")
def test_help_loads_nothing_heavy(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words, "--help"], capture_output=True, text=True, check=True
    )
    status, modules = json.loads(done.stderr)
    assert status == 0
    assert not HEAVY & set(modules)
    assert (" ".join(words) or "headloc") in done.stdout


@pytest.mark.parametrize("command", ["localize", "evaluate", "bundled_train"])
def test_help_shows_every_group_choice_and_option(command: str, headloc: Headloc) -> None:
    text = headloc(*command.split("_"), "--help").out
    primary = (config_dir() / f"{command}.yaml").read_text()
    assert primary.rstrip() in text
    for group in (path for path in config_dir().iterdir() if path.is_dir()):
        if f"- {group.name}:" not in primary:
            continue
        assert f"\n{group.name}=\n" in text
        for choice in group.glob("*.yaml"):
            assert f"\n  {choice.stem}\n" in text


def test_every_command_is_in_the_summary(headloc: Headloc) -> None:
    result = headloc("--help")
    assert result.status == 0
    for command in COMMANDS:
        assert " ".join(command.words) in result.out
        assert command.summary in result.out


def test_the_version_is_told(headloc: Headloc) -> None:
    from headloc import __version__

    assert headloc("--version").out == f"headloc {__version__}\n"
    assert headloc("localize", "--version").out == f"headloc {__version__}\n"


def test_importing_headloc_loads_nothing_heavy() -> None:
    code = "import json, sys, headloc; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert not HEAVY & set(json.loads(done.stdout))


def test_every_public_name_resolves_and_an_unknown_one_does_not() -> None:
    import headloc

    for name in headloc.__all__:
        assert getattr(headloc, name) is not None
    assert set(headloc.__all__) == set(dir(headloc))
    with pytest.raises(AttributeError, match="localise"):
        _ = headloc.localise
