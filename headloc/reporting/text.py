"""How names, numbers and texts of unknown origin are written for people."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: object, *, keep: str = "") -> str:
    """Return text with control and direction characters written as escapes.

    Prompts, tokens and names come from files: none of them may move a terminal's cursor or reorder
    a line.

    Args:
        text: anything; its `str`.
        keep: characters left as they are, such as a newline.
    """
    return "".join(
        escaped(char) if unicodedata.category(char) in _HIDDEN and char not in keep else char
        for char in str(text)
    )


def escaped(text: str) -> str:
    """Return text in ASCII, everything else as escapes."""
    return text.encode("unicode_escape").decode("ascii")


def one_line(text: object, width: int | None = None) -> str:
    """Return text on one line, cut at `width` characters."""
    line = visible(text)
    return line if width is None or len(line) <= width else f"{line[: width - 3]}..."


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{share:.1%}"


def plural(count: float, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count:,.0f} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """Return a duration in seconds, or in minutes and hours where it is longer."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def task_name(task: Mapping[str, Any]) -> str:
    """Return the name of the task family that a circuit's `task` describes."""
    return str(task.get("family") or task.get("name") or "unknown task")


def model_name(model: Mapping[str, Any]) -> str:
    """Return the name of the model that a circuit's `model` describes."""
    return str(model.get("name") or "unknown model")
