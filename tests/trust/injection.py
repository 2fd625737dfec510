"""A disk that fails at a chosen write, for a forked process.

Everything by which a file comes to a disk counts as a write: making a folder, opening a file to
write to it, its content, and moving it into place.  Python's audit events see the first, second and
last wherever they come from (Lightning, fsspec, matplotlib, tempfile), and the content fails
half-way.  Audit hooks stay for ever, so this belongs into a process of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """Counts the writes below a folder, and lets some of them fail.

    Args:
        folder: the place that is watched.
        at: number of the first write that fails, from 0; None counts only.
        error: what it fails with, a number of `errno`.
        lasts: whether every later write fails too.
    """

    def __init__(self, folder: Path, at: int | None, error: int, lasts: bool) -> None:
        self.folder, self.at, self.error, self.lasts = str(folder), at, error, lasts
        self.writes = 0

    def install(self) -> None:
        """Watch this process from now on."""
        sys.addaudithook(self._event)
        opened = os.fdopen

        def fdopen(handle: int, mode: str = "r", *more: Any, **options: Any) -> Any:
            file = opened(handle, mode, *more, **options)
            return _Content(file, self) if "w" in mode else file

        os.fdopen = fdopen  # type: ignore[assignment]

    def write(self, path: str) -> None:
        """Count a write, or let it fail."""
        number, self.writes = self.writes, self.writes + 1
        if self.at is None or number < self.at or (number > self.at and not self.lasts):
            return
        raise OSError(self.error, os.strerror(self.error), path)

    def _event(self, name: str, given: tuple[Any, ...]) -> None:
        if name not in ("open", "os.mkdir", "os.rename") or not isinstance(given[0], str | Path):
            return
        path = str(given[1] if name == "os.rename" else given[0])
        if path != self.folder and not path.startswith(f"{self.folder}{os.sep}"):
            return
        if name == "open" and not (given[2] or 0) & _WRITING:
            return
        # A disk says of a folder that is there that it is there, full or not.
        if name == "os.mkdir" and os.path.isdir(path):
            return
        self.write(path)


class _Content:
    """A file whose content comes to the disk half only when that is full."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, content: bytes) -> int:
        try:
            self._disk.write(str(self._disk.folder))
        except OSError as error:
            self._file.write(content[: len(content) // 2])
            # As from the system: without a path.
            raise OSError(error.errno, error.strerror) from None
        return int(self._file.write(content))

    def __enter__(self) -> _Content:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: Any) -> Any:
        return self._file.__exit__(*exception)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
