"""The references that ship with headloc, one JSON file per experiment, read when asked for."""

from __future__ import annotations

from pathlib import Path

from headloc.errors import HeadlocError, suggest
from headloc.files import read_json
from headloc.references.reading import parse_reference
from headloc.references.reference import Reference


def reference_names() -> tuple[str, ...]:
    """Return the experiments that have a reference, sorted."""
    folder = _folder()
    return tuple(
        sorted(
            path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.json")
        )
    )


def load_reference(experiment: str) -> Reference:
    """Return the reference of an experiment.

    Raises:
        HeadlocError: when there is none, with the closest names; or when its file is broken.
    """
    names = reference_names()
    if experiment not in names:
        raise HeadlocError(
            f"There is no published reference for {experiment!r}. {suggest(experiment, names)}"
        )
    path = _folder() / f"{experiment}.json"
    return parse_reference(read_json(path, "reference"), str(path.relative_to(_folder())))


def _folder() -> Path:
    return Path(__file__).parent / "data"
