"""Files that come with a result and can be made again from it: pictures, reports.

A disk that is full must not cost a circuit because of a picture.  What fails is told once, at the
end, when everything else is written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from headloc.errors import IncompleteError
from headloc.faults import fault


class Extras:
    """Makes such files and keeps account of those that failed."""

    def __init__(self) -> None:
        """Start with nothing missing."""
        self._missing: dict[str, str] = {}

    def attempt(self, name: str, make: Callable[[], object]) -> None:
        """Make files; a fault is kept for the end, anything else comes through.

        Args:
            name: what people know the files by.
            make: makes them.
        """
        try:
            make()
        except Exception as error:
            told = fault(error)
            if told is None:
                raise
            self._missing.setdefault(name, told)

    def check(self, folder: Path, again: str = "Then run the same command again.") -> None:
        """Tell what is missing, if anything is.

        Args:
            folder: where the result lies.
            again: how to make the missing files, a sentence.

        Raises:
            IncompleteError: naming every file and the first fault.
        """
        if self._missing:
            first = next(iter(self._missing.values()))
            raise IncompleteError(
                f"The result is saved in {folder}, but not with it: {', '.join(self._missing)}. "
                f"{first} {again}"
            )
