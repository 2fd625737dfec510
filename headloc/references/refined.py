"""The figures of a refinement (`headloc refine`) as flat metrics, for the comparison.

refinement/<row>                accuracy of a row of the verdict table, tasks trained on, with
                                /low, /high and /n
refinement/heads/significant    number of significant heads
refinement/heads/main           number of main heads
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headloc.errors import HeadlocError
from headloc.files import read_json

_SPLIT = "seen"
_ENDS = ("low", "high", "n")


def refinement_metrics(folder: Path) -> dict[str, float]:
    """Return the flat metrics of a refinement's output folder.

    Raises:
        HeadlocError: when the folder holds no refinement.
    """
    found = read_json(folder / "refinement.json", "refinement")
    table = read_json(folder / "table.json", "table of a refinement")
    try:
        metrics: dict[str, float] = {
            f"refinement/heads/{name}": len(found[name]) for name in ("significant", "main")
        }
        for row in table["rows"]:
            if row["split"] == _SPLIT:
                metrics |= _row(row)
    except (KeyError, TypeError) as error:
        raise HeadlocError(
            f"{folder} holds no refinement that this headloc reads ({error} is missing). Run "
            "`headloc refine` again."
        ) from None
    return metrics


def _row(row: Mapping[str, Any]) -> dict[str, float]:
    key = f"refinement/{row['key']}"
    return {key: row["accuracy"], **{f"{key}/{end}": row[end] for end in _ENDS}}
