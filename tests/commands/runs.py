"""What the tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SMALL = (
    "data.train_prompts=32",
    "data.selection_prompts=24",
    "data.test_prompts=24",
    "data.held_out_prompts=24",
    "data.mean_prompts=24",
    "verdict.random_sets=2",
)


@dataclass(frozen=True)
class Result:
    """What a call of the command line gave."""

    status: int
    out: str
    err: str


Headloc = Callable[..., Result]


def quick(folder: Path, *more: str) -> list[str]:
    """Arguments of a localization of a second or two."""
    return ["localize", "debug=fast", "logger=none", *SMALL, f"output_dir={folder}", *more]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
