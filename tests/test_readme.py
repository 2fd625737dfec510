"""The README keeps its word: its Python runs, its table is complete, it stays a front page.

Its commands are tested with those of the guides, in tests/guides.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from headloc.cli import COMMANDS
from headloc.lm.families import FAMILIES
from tests.guides.pages import PAGES, blocks

README = PAGES["README"]


def test_the_python_of_the_readme_runs_and_saves_a_circuit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "circuit" / "circuit.json").is_file()
    printed = capsys.readouterr().out
    assert "HeadId" in printed
    # The demonstrations say "seven more": the circuit alone still answers 47.
    assert printed.rstrip().endswith("47")


def test_the_table_of_support_names_every_family_of_the_code() -> None:
    table = README.split("## Supported models")[1].split("## ")[0]
    named = set(re.findall(r"[a-z0-9_]+", table))
    missing = {name.removesuffix("_text") for name in FAMILIES} - named
    assert not missing


def test_the_readme_is_a_front_page_that_names_every_command() -> None:
    assert len(README.splitlines()) <= 250
    for command in COMMANDS:
        name = " ".join(command.words)
        assert f"`headloc {name}`" in README or f"`{command.words[-1]}`" in README
