"""Arguments of commands that Hydra does not configure: paths, and options as key=value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from headloc.errors import HeadlocError, suggest


def split_arguments(
    arguments: Sequence[str], known: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Tell paths from options; a file that exists is a path even with `=` in its name.

    Raises:
        HeadlocError: for an option that is not known, or given twice.
    """
    paths: list[str] = []
    options: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or Path(argument).exists():
            paths.append(argument)
        elif key not in known:
            raise HeadlocError(f"There is no option {key!r} here. {suggest(key, known or ['DIR'])}")
        elif key in options:
            raise HeadlocError(f"{key}= is given twice. Give it once.")
        else:
            options[key] = value
    return paths, options


def whole_number(options: Mapping[str, str], key: str, default: int, smallest: int = 0) -> int:
    """Return an option as a whole number.

    Raises:
        HeadlocError: when it is none, or too small.
    """
    text = options.get(key, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < smallest:
        raise HeadlocError(f"{key}={text} must be a whole number, {smallest} or above.")
    return int(text)


def truth(options: Mapping[str, str], key: str, default: bool) -> bool:
    """Return an option that is true or false.

    Raises:
        HeadlocError: when it is neither.
    """
    text = options.get(key, str(default)).lower()
    if text not in ("true", "false"):
        raise HeadlocError(f"{key}={text} must be true or false.")
    return text == "true"
