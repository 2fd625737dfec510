"""The README keeps its word: its Python runs, its commands are composed, its table is complete."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from headloc.cli import COMMANDS, config_dir
from headloc.lm.families import FAMILIES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("headloc ")]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_of_the_readme_exists_and_takes_its_options(words: list[str]) -> None:
    known = {command.words: command for command in COMMANDS}
    name = next(words[1 : 1 + n] for n in (2, 1) if tuple(words[1 : 1 + n]) in known)
    command = known[tuple(name)]
    if command.config is None:
        return
    overrides = [word for word in words[1 + len(name) :] if "=" in word]
    first = [re.sub(r"=([^,\[]*),.*$", r"=\1", word) for word in overrides]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        compose(command.config, overrides=first)


def test_the_python_of_the_readme_runs_and_saves_a_circuit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, *others = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(first, "README.md", "exec"), names)
    assert (tmp_path / "circuit" / "circuit.json").is_file()
    printed = capsys.readouterr().out
    assert "HeadId" in printed
    # The demonstrations say "seven more": the circuit alone still answers 47.
    assert printed.rstrip().endswith("47")
    for code in others:
        exec(compile(code, "README.md", "exec"), names)
    # A plain model of transformers under the circuit says the same.
    assert str(names["lm"].tokenizer.convert_tokens_to_ids("47")) in capsys.readouterr().out


def test_the_table_of_support_names_every_family_of_the_code() -> None:
    table = README.split("## Supported models")[1].split("## ")[0]
    named = set(re.findall(r"[a-z0-9_]+", table))
    missing = {name.removesuffix("_text") for name in FAMILIES} - named
    assert not missing
