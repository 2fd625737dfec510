"""What the tests of README and guides read in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from headloc.guides import guide_names, guide_text

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README": (ROOT / "README.md").read_text(encoding="utf-8")} | {
    name: guide_text(name) for name in guide_names()
}
"""Markdown by name of the page."""

_EXAMPLE = re.compile(
    r"^Worked example, run by the tests\s+(as it is|with `(?P<added>[^`]+)`)[^\n]*:\n\n"
    r"```bash\n(?P<commands>.*?)```\n\nIt writes (?P<files>.*?)\n\n",
    re.DOTALL | re.MULTILINE,
)
_FILE = re.compile(r"`([^`\s]*/[^`\s]+)`(?:\s+\(([^)]*)\))?")


def blocks(page: str, language: str) -> list[str]:
    """Return the code of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Return the calls of headloc in a block of shell."""
    return [
        shlex.split(line, comments=True)[1:]
        for line in text.splitlines()
        if line.startswith("headloc ")
    ]


@dataclass(frozen=True)
class Example:
    """A worked example.

    Attributes:
        page: where it stands.
        added: options that the page says the tests add.
        commands: arguments of each call of headloc.
        files: what the page says it writes: a path, and keys or columns in it.
    """

    page: str
    added: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    files: tuple[tuple[str, tuple[str, ...]], ...]


def examples(page: str) -> list[Example]:
    """Return the worked examples of a page."""
    return [
        Example(
            page,
            tuple((match["added"] or "").split()),
            tuple(map(tuple, commands(match["commands"]))),
            tuple(
                (path, tuple(re.findall(r"`([^`]+)`", keys or "")))
                for path, keys in _FILE.findall(match["files"])
            ),
        )
        for match in _EXAMPLE.finditer(PAGES[page])
    ]
