"""Guides and README: their commands compose, their options exist, and they can be read anywhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir

from headloc.cli import COMMANDS, Command, config_dir
from headloc.errors import HeadlocError
from headloc.guides import guide_names, guide_of, guide_summary, guide_text
from tests.commands.runs import Headloc
from tests.guides.pages import PAGES, ROOT, blocks, commands

KNOWN = {command.words: command for command in COMMANDS}
CALLS = [
    (page, words) for page in PAGES for block in blocks(page, "bash") for words in commands(block)
]


def command_of(words: list[str]) -> tuple[Command, list[str]]:
    name = next(tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in KNOWN)
    return KNOWN[name], words[len(name) :]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]}: {' '.join(call[1])}")
def test_a_command_exists_and_takes_its_options(call: tuple[str, list[str]]) -> None:
    command, rest = command_of(call[1])
    given = [word for word in rest if "=" in word]
    if command.words == ("reproduce",):
        experiment, given = rest[0], [word for word in given if not word.startswith("refine")]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            compose("localize", overrides=[f"experiment={experiment}", *given])
    elif command.config is None:
        usage = command.usage if isinstance(command.usage, str) else command.usage()
        for word in given:
            assert re.search(rf"\b{word.split('=')[0]}=", usage), word
    else:
        # Of a sweep over values, the first.
        first = [re.sub(r"=([^,\[]*),.*$", r"=\1", word) for word in given]
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            compose(command.config, overrides=first)


def known_options() -> tuple[set[str], dict[str, set[str]]]:
    """Every option in dotted form, and the choices of every group."""
    options: set[str] = set()
    choices: dict[str, set[str]] = {}

    def walk(prefix: str, node: object) -> None:
        if prefix:
            options.add(prefix)
        if isinstance(node, dict):
            for key, value in node.items():
                if key not in ("defaults", "_target_"):
                    walk(f"{prefix}.{key}" if prefix else str(key), value)

    folder = config_dir()
    for path in folder.rglob("*.yaml"):
        group = path.relative_to(folder).parent.as_posix()
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        walk("" if group == "." or group.startswith(("experiment", "debug", "sweep")) else group,
             content)  # fmt: skip
        if group != ".":
            name = path.relative_to(folder / group.split("/")[0]).with_suffix("").as_posix()
            choices.setdefault(group.split("/")[0], set()).add(name)
    return options, choices


OPTIONS, CHOICES = known_options()
USAGES = "\n".join(
    command.usage if isinstance(command.usage, str) else command.usage() for command in COMMANDS
)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_named_in_the_text_exists(page: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for span in re.findall(r"`([^`]+)`", text):
        for name, value in re.findall(r"(?:^|\s|')([a-z_]+(?:\.[a-z_]+)*)=([^\s']*)", span):
            bare = name.removeprefix("refine.")
            by_name = re.sub(r"^analysis\.[a-z_]+\.", "analysis.", bare)
            if name in CHOICES and re.fullmatch(r"[a-z_]+(/[a-z0-9_]+)?", value):
                assert value in CHOICES[name], f"{name}={value}"
            else:
                exists = {bare, by_name} & (OPTIONS | set(CHOICES))
                assert exists or f"{name}=" in USAGES or name == "refine", f"{name}={value}"


@pytest.mark.parametrize("page", [name for name in PAGES if name not in ("README",)])
def test_a_guide_begins_with_its_title_and_is_short(page: str) -> None:
    lines = PAGES[page].splitlines()
    assert re.fullmatch(r"# .+: .+", lines[0])
    assert sum(line.startswith("# ") for line in re.sub(
        r"```.*?```", "", PAGES[page], flags=re.DOTALL).splitlines()) == 1  # fmt: skip
    assert page == "gotchas" or len(lines) <= 180
    assert not [line for line in lines if line.rstrip() != line]


def test_every_command_has_a_guide_that_its_help_ends_with(headloc: Headloc) -> None:
    for command in COMMANDS:
        if command.words == ("guide",):
            continue
        name = guide_of(command.words)
        assert name is not None
        assert headloc(*command.words, "--help").out.endswith(f"Guide: headloc guide {name}\n")


def test_guides_named_in_guides_exist_and_links_lead_somewhere() -> None:
    for text in PAGES.values():
        assert set(re.findall(r"`headloc guide ([a-z]+)`", text)) <= {*guide_names()}
    for target in re.findall(r"\]\(([^)]+)\)", PAGES["README"]):
        assert (ROOT / target).is_file(), target
    linked = set(re.findall(r"headloc/guides/([a-z]+)\.md", PAGES["README"]))
    assert linked == {*guide_names()}


def test_every_gotcha_has_a_cause_and_a_fix_that_names_something_to_type() -> None:
    entries = re.split(r"^### ", PAGES["gotchas"], flags=re.MULTILINE)[1:]
    assert len(entries) >= 25
    for entry in entries:
        title, _, body = entry.partition("\n")
        assert re.search(r"^- Cause: \S", body, re.MULTILINE), title
        fix = re.search(r"^- Fix: (.*?)(?=\n\n|\Z)", body, re.MULTILINE | re.DOTALL)
        assert fix, title
        assert "`" in fix[1] or fix[1].startswith(("none", "nothing")), title


def test_the_list_names_every_guide_with_its_line(headloc: Headloc) -> None:
    out = headloc("guide").out
    for name in guide_names():
        assert re.search(rf"^{name} +{re.escape(guide_summary(name))}$", out, re.MULTILINE)


def test_in_a_pipe_a_guide_is_markdown_as_it_is(headloc: Headloc) -> None:
    assert headloc("guide", "gotchas").out == guide_text("gotchas")
    assert headloc("guide", "circuit", "diff").out == guide_text("circuit")


def test_an_unknown_guide_gives_the_closest_name(headloc: Headloc) -> None:
    result = headloc("guide", "localise")
    assert result.status == 2
    assert "Did you mean 'localize'" in result.err
    with pytest.raises(HeadlocError, match="There is no guide"):
        guide_text("../README")


def test_on_a_terminal_a_guide_is_rendered() -> None:
    code = (
        "import sys; from headloc.commands import guide;"
        "sys.stdout.isatty = lambda: True;"
        "guide.run(['localize']); print(sorted({'torch', 'hydra', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert plain != done.stdout
    assert "```" not in plain
    assert "headloc localize output_dir=outputs/bundled" in plain
    assert done.stdout.endswith("[]\n")
