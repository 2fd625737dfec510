"""The guides: one Markdown file per command and a page of gotchas, readable where nothing else is.

A guide's first line is `# TITLE: what it is about in one line`.
"""

from __future__ import annotations

from pathlib import Path

from headloc.errors import HeadlocError, suggest


def guide_names() -> tuple[str, ...]:
    """Return the names of the guides, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.md")))


def guide_text(name: str) -> str:
    """Return a guide as Markdown.

    Raises:
        HeadlocError: when there is none of that name, with the closest names.
    """
    names = guide_names()
    if name not in names:
        raise HeadlocError(f"There is no guide {name!r}. {suggest(name, names)}")
    return (_folder() / f"{name}.md").read_text(encoding="utf-8")


def guide_summary(name: str) -> str:
    """Return what a guide is about, in one line.

    Raises:
        HeadlocError: when there is no such guide.
    """
    title = guide_text(name).partition("\n")[0]
    return title.partition(": ")[2]


def guide_of(words: tuple[str, ...]) -> str | None:
    """Return the name of the guide to a command, None where there is none.

    Args:
        words: the words that name the command, such as ("circuit", "show"), told in `circuit.md`.
    """
    return words[0] if words and words[0] in guide_names() else None


def _folder() -> Path:
    return Path(__file__).parent
