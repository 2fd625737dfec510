"""Log findings to W&B: scalars, tables and pictures, with the circuit as the artifact used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.reporting.text import task_name
from headloc.reporting.wandb_run import artifact_name, circuit_artifact

from .base import Analysis, Findings
from .saving import FINDINGS, finite

if TYPE_CHECKING:
    from headloc.circuit import Circuit

log = logging.getLogger(__name__)

MOST_ROWS = 2000
"""Rows of a table that are uploaded; the csv file has all."""


def use_circuit(run: Any, circuit: Circuit, folder: Path) -> None:
    """Tell W&B which circuit is analysed; a failure costs a warning, not the analysis.

    Offline, W&B cannot record the use of an artifact, so the circuit is named in the summary.

    Args:
        run: the W&B run, or None.
        circuit: the circuit.
        folder: its folder.
    """
    if run is None:
        return
    try:
        run.config.update(
            {"circuit_model": dict(circuit.model), "circuit_heads": list(map(str, circuit.heads))},
            allow_val_change=True,
        )
        if run.offline:
            run.summary["circuit/artifact"] = artifact_name(task_name(circuit.task))
            return
        run.use_artifact(circuit_artifact(circuit, folder))
    except Exception as error:
        log.warning("W&B was not told of the circuit (%s); the analysis goes on.", error)


def log_findings(run: Any, analysis: Analysis, found: Findings, output_dir: Path) -> None:
    """Log one analysis; a failure costs a warning, its files are complete.

    Args:
        run: the W&B run, or None.
        analysis: the analysis.
        found: its findings.
        output_dir: where `save_findings` has written them.
    """
    if run is None:
        return
    try:
        run.log(_media(analysis, found, output_dir / FINDINGS / analysis.name))
        scalars = finite(found.scalars)
        run.summary.update({f"{analysis.name}/{key}": value for key, value in scalars.items()})
    except Exception as error:
        log.warning("The findings could not be logged to W&B (%s); see %s.", error, output_dir)


def _media(analysis: Analysis, found: Findings, folder: Path) -> Mapping[str, Any]:
    import wandb

    media: dict[str, Any] = {}
    for table in found.tables:
        rows = _of_one_type([list(row) for row in table.rows[:MOST_ROWS]])
        media[f"{analysis.name}/{table.name}"] = wandb.Table(columns=list(table.columns), data=rows)
    for picture in found.pictures:
        path = folder / f"{picture.name}.png"
        media[f"{analysis.name}/{picture.name}_picture"] = wandb.Image(
            str(path), caption=picture.caption
        )
    return media


def _of_one_type(rows: list[list[Any]]) -> list[list[Any]]:
    """Return a table's rows with the columns as text that hold both text and numbers.

    W&B refuses a table whose column changes its type, and with it all else of the analysis.
    """
    if not rows:
        return rows
    for column in range(len(rows[0])):
        values = [row[column] for row in rows if row[column] is not None]
        texts = sum(isinstance(value, str) for value in values)
        if 0 < texts < len(values):
            for row in rows:
                row[column] = None if row[column] is None else str(row[column])
    return rows
