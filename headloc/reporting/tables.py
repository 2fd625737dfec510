"""The tables that a run leaves: heads.csv and outcomes.csv."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from headloc.evaluation.conditions import APART
from headloc.files import csv_text, write_text
from headloc.reporting.feed_forward import mlp_rows
from headloc.reporting.outcomes import SCORED, OutcomeRow, outcome_rows
from headloc.reporting.rows import HeadRow, head_rows

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.localizer.run import Localization

HEAD_COLUMNS = ("layer", "head", "gate", "score", "selected", "replicate_share")
OUTCOME_COLUMNS = (
    "split",
    "index",
    "task",
    "prompt",
    "answer",
    "answer_full",
    "answer_circuit",
    *(f"correct_{name}" for name in SCORED),
    *(f"log_probability_{name}" for name in SCORED),
)


def write_heads(result: Localization, path: Path) -> None:
    """Write every head: gate, score, whether selected, share of the replicates that chose it.

    Feed-forward blocks, where they were gated, stand behind the heads with the head "MLP".
    """
    rows = [head_values(row) for row in head_rows(result.circuit, result.replicates)]
    blocks = mlp_rows(result.circuit, result.replicates)
    rows += [[r.block.layer, "MLP", r.gate, r.score, r.selected, r.share] for r in blocks]
    write_text(path, csv_text(HEAD_COLUMNS, rows))


def write_outcomes(result: Localization, path: Path, lm: FrozenLM) -> None:
    """Write every prompt of the verdict with the answers of the full model and of the circuit."""
    rows = outcome_rows(result, lm)
    apart = [name for name in APART if rows and name in rows[0].correct]
    more = [f"{what}_{name}" for what in ("correct", "log_probability") for name in apart]
    cells = (
        [
            *_outcome_values(row),
            *(row.correct.get(name) for name in apart),
            *(row.log_probability.get(name) for name in apart),
        ]
        for row in rows
    )
    write_text(path, csv_text((*OUTCOME_COLUMNS, *more), cells))


def head_values(row: HeadRow) -> list[object]:
    """Return the cells of a head in the order of `HEAD_COLUMNS`."""
    return [row.head.layer, row.head.head, row.gate, row.score, row.selected, row.share]


def read_outcomes(path: Path) -> list[OutcomeRow]:
    """Read outcomes.csv back; only the full model's and the circuit's answers are in it."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_outcome_row(cells) for cells in csv.DictReader(file)]


def _outcome_row(cells: dict[str, str]) -> OutcomeRow:
    scored = [name for name in SCORED if cells[f"correct_{name}"]]
    return OutcomeRow(
        cells["split"],
        int(cells["index"]),
        cells["task"],
        cells["prompt"],
        cells["answer"],
        {name: cells[f"answer_{name}"] for name in ("full", "circuit")},
        {name: cells[f"correct_{name}"] == "1" for name in scored},
        {name: float(cells[f"log_probability_{name}"]) for name in scored},
    )


def _outcome_values(row: OutcomeRow) -> list[object]:
    return [
        row.split,
        row.index,
        row.task,
        row.prompt,
        row.answer,
        row.predicted.get("full"),
        row.predicted.get("circuit"),
        *(row.correct.get(name) for name in SCORED),
        *(row.log_probability.get(name) for name in SCORED),
    ]
