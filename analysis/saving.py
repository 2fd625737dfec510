"""Write findings: a folder of json, csv, png and svg per analysis, complete or not there at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headloc.files import csv_text, file_name, write_bytes, write_folder, write_json, write_text

from .base import Analysis, Findings, Picture, Subject

FINDINGS = "findings"


def save_findings(analysis: Analysis, subject: Subject, found: Findings, output_dir: Path) -> Path:
    """Write `output_dir`/findings/NAME and return it.

    The folder holds summary.json (flat scalars), findings.json (scalars, sentences, options, what
    was analysed), one csv per table, one png and one svg per picture, and circuit/ where the
    analysis has found heads.
    """
    folder = output_dir / FINDINGS / file_name(analysis.name, "An analysis")

    def fill(place: Path) -> None:
        write_json(place / "summary.json", finite(found.scalars))
        write_json(place / "findings.json", described(analysis, subject, found))
        for table in found.tables:
            name = file_name(table.name, "A table")
            write_text(place / f"{name}.csv", csv_text(table.columns, table.rows))
        for picture in found.pictures:
            name = file_name(picture.name, "A picture")
            for kind, content in rendered_picture(picture).items():
                write_bytes(place / f"{name}.{kind}", content)
        if found.circuit is not None:
            (place / "circuit").mkdir()
            found.circuit.write_into(place / "circuit")

    write_folder(folder, fill)
    return folder


def described(analysis: Analysis, subject: Subject, found: Findings) -> dict[str, Any]:
    """Return everything but tables and pictures, json-able."""
    return {
        "analysis": analysis.name,
        "question": analysis.question,
        "options": analysis.options(),
        "seed": subject.seed,
        "mean_prompts": subject.mean_prompts,
        "model": subject.lm.source.to_dict(),
        "task": subject.task.describe(),
        "heads": [[head.layer, head.head] for head in subject.heads],
        "scalars": finite(found.scalars),
        "sentences": list(found.sentences),
        "tables": {table.name: table.caption for table in found.tables},
        "pictures": {picture.name: picture.caption for picture in found.pictures},
    }


def finite(scalars: Mapping[str, float]) -> dict[str, float | None]:
    """Return the scalars as plain floats, None for what is undefined (JSON has no NaN)."""
    plain = {key: float(value) for key, value in scalars.items()}
    return {key: value if math.isfinite(value) else None for key, value in plain.items()}


def rendered_picture(picture: Picture, kinds: tuple[str, ...] = ("png", "svg")) -> dict[str, bytes]:
    """Return a picture as bytes by kind, in the style of all headloc pictures."""
    from matplotlib import rc_context

    from headloc.reporting.pictures import STYLE, rendered

    with rc_context(STYLE):
        figure = picture.draw()
        return {kind: rendered(figure, kind) for kind in kinds}
