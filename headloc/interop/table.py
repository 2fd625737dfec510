"""headloc's own table of heads: a CSV file with layer, head, gate, score, selected.

The rows of feed-forward blocks have "MLP" for a head.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from headloc.heads import HeadId
from headloc.interop.found import Blocks, ForeignHeads
from headloc.interop.untrusted import Checks, file_text

if TYPE_CHECKING:
    from headloc.interop.reading import Options

COLUMNS = ("layer", "head", "gate", "score", "selected")


def read_table(path: Path, options: Options) -> ForeignHeads:
    """Read a table of heads; further columns are ignored.

    Raises:
        CircuitError: for a file that is not such a table.
    """
    checks = Checks(str(path), f"a CSV file with the columns {', '.join(COLUMNS)}")
    reader = csv.DictReader(io.StringIO(file_text(path)), strict=True)
    gates: dict[HeadId | int, float] = {}
    scores: dict[HeadId | int, float] = {}
    kept: set[HeadId | int] = set()
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise checks.refuse(f"it has no column {missing[0]!r}")
        for row in reader:
            key = _key(row, checks)
            checks.add(gates, key, _number(row["gate"], checks))
            scores[key] = _number(row["score"], checks)
            if row["selected"] not in ("0", "1"):
                raise checks.refuse(f"selected is {row['selected']!r:.40}, not 0 or 1")
            if row["selected"] == "1":
                kept.add(key)
    except csv.Error as error:
        raise checks.refuse(f"line {reader.line_num} is no CSV ({error})") from None
    heads = [key for key in gates if isinstance(key, HeadId)]
    layers = [key for key in gates if isinstance(key, int)]
    blocks = Blocks(
        {layer: scores[layer] for layer in layers},
        frozenset(layer for layer in layers if layer in kept),
        {layer: gates[layer] for layer in layers},
    )
    return ForeignHeads(
        kept=frozenset(head for head in heads if head in kept),
        scores={head: scores[head] for head in heads},
        gates={head: gates[head] for head in heads},
        complete=True,
        blocks=blocks if layers and options.mlps else None,
    )


def _key(row: dict[str, str], checks: Checks) -> HeadId | int:
    layer = checks.index(_integer(row["layer"]), "a layer")
    if row["head"] == "MLP":
        return layer
    return HeadId(layer, checks.index(_integer(row["head"]), "a head"))


def _integer(text: str | None) -> int | str | None:
    digits = text is not None and text.isascii() and text.isdigit() and len(text) < 7
    return int(text) if digits and text is not None else text


def _number(text: str | None, checks: Checks) -> float:
    try:
        value: object = float(text or "")
    except ValueError:
        value = text
    return checks.number(value, "a gate or score")
