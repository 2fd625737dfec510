"""One thing to break: valid files, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Target:
    """Files that are read together.

    Attributes:
        name: what they are.
        files: valid content by relative path; one of them is broken at a time.
        read: reads them from a folder; raises a HeadlocError for what is wrong with them.
    """

    name: str
    files: Files
    read: Callable[[Path], Any]
