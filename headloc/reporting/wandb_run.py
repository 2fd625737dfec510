"""What a finished run leaves in W&B: tables, the heat map, the summary, and the circuit itself."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.components import MlpId
from headloc.reporting.figures import SPLITS, accuracy_rows
from headloc.reporting.outcomes import example_rows
from headloc.reporting.pictures import picture_path
from headloc.reporting.rows import head_rows
from headloc.reporting.tables import HEAD_COLUMNS, head_values, read_outcomes
from headloc.reporting.text import model_name, task_name, visible

if TYPE_CHECKING:
    from headloc.bank.result import PathResult
    from headloc.circuit import Circuit
    from headloc.localizer.run import Localization
    from headloc.reporting.loggers import RunLogger

log = logging.getLogger(__name__)

_ACCURACY_COLUMNS = ("condition", "tasks", "accuracy", "low", "high", "n", "smallest", "largest")
_PREDICTION_COLUMNS = ("split", "task", "prompt", "answer", "full model", "circuit")


def log_result(
    logger: RunLogger, result: Localization, settings: Mapping[str, Any], folder: Path
) -> None:
    """Log a result to the W&B run, if there is one; a failure costs a warning, not the run.

    Args:
        logger: the logger of the run.
        result: what the run found.
        settings: the whole resolved configuration.
        folder: the output folder, in which the result's files have been written.
    """
    run = logger.wandb_run
    if run is None or logger.lost:
        return
    try:
        run.log(_media(result, folder))
        run.summary.update(
            {
                **result.metrics,
                "heads/names": [str(h) for h in result.circuit.heads],
                **_blocks(result.circuit),
            }
        )
        run.config.update({"model_source": dict(result.circuit.model)}, allow_val_change=True)
        _log_circuit(run, result.circuit, folder)
    except Exception as error:
        log.warning("The result could not be logged to W&B (%s); its files are complete.", error)


def artifact_name(task: str) -> str:
    """Return the name of a circuit's artifact, of characters that W&B allows."""
    return f"circuit-{re.sub(r'[^A-Za-z0-9_.-]+', '-', task)}"[:128]


def _media(result: Localization, folder: Path) -> dict[str, Any]:
    import wandb

    rows = head_rows(result.circuit, result.replicates)
    media: dict[str, Any] = {
        "heads": wandb.Table(columns=list(HEAD_COLUMNS), data=[head_values(row) for row in rows]),
        "accuracies": wandb.Table(
            columns=list(_ACCURACY_COLUMNS), data=_accuracies(result.metrics)
        ),
    }
    picture = picture_path(folder, "heads")
    if picture.is_file():
        media["heads_map"] = wandb.Image(str(picture), caption="gates by layer and head")
    if result.path is not None:
        media |= _path(result.path, result.circuit, folder)
    outcomes = folder / "outcomes.csv"
    if outcomes.is_file():
        media["predictions"] = wandb.Table(
            columns=list(_PREDICTION_COLUMNS), data=_predictions(outcomes)
        )
    return media


def _path(path: PathResult, circuit: Circuit, folder: Path) -> dict[str, Any]:
    import wandb

    from headloc.bank.export import CURVE_COLUMNS, MEMBER_COLUMNS, curve_rows, member_rows

    media: dict[str, Any] = {
        "path/curve": wandb.Table(columns=list(CURVE_COLUMNS), data=curve_rows(path)),
        "path/gate_sets": wandb.Table(
            columns=list(MEMBER_COLUMNS), data=member_rows(path, circuit)
        ),
    }
    picture = picture_path(folder, "path")
    if picture.is_file():
        media["path/picture"] = wandb.Image(str(picture), caption="accuracy against heads")
    return media


def _blocks(circuit: Circuit) -> dict[str, list[str]]:
    """Return the names of the kept feed-forward blocks, where they were gated."""
    if circuit.mlps is None:
        return {}
    return {"mlps/names": [str(MlpId(layer)) for layer in circuit.mlps]}


def _accuracies(metrics: Mapping[str, float]) -> list[list[Any]]:
    return [
        [row.label, name, f.value, f.low, f.high, f.n, f.smallest, f.largest]
        for row in accuracy_rows(metrics)
        for name, f in zip(SPLITS.values(), row.figures, strict=True)
        if f is not None
    ]


def _predictions(path: Path) -> list[list[str]]:
    return [
        [
            visible(text)
            for text in (row.split, row.task, row.prompt, row.answer, row.predicted["full"],
                         row.predicted["circuit"])
        ]
        for row in example_rows(read_outcomes(path))
    ]  # fmt: skip


def circuit_artifact(
    circuit: Circuit, folder: Path, metadata: Mapping[str, Any] | None = None
) -> Any:
    """Return a circuit as an artifact: the files of a circuit, whatever else lies in its folder.

    Args:
        circuit: the circuit.
        folder: its folder.
        metadata: facts to record with it.
    """
    import wandb

    from headloc.circuit.hub import CARD, FILES

    artifact = wandb.Artifact(
        artifact_name(task_name(circuit.task)),
        type="circuit",
        description=f"{len(circuit.heads)} heads of {model_name(circuit.model)}",
        metadata=None if metadata is None else dict(metadata),
    )
    for name in (*FILES, CARD):
        # A link may lead to anything of the user's.
        if (folder / name).is_file() and not (folder / name).is_symlink():
            artifact.add_file(str(folder / name), name=name)
    return artifact


def _log_circuit(run: Any, circuit: Circuit, folder: Path) -> None:
    if not (folder / "circuit").is_dir():
        return
    facts = {
        "lm": dict(circuit.model),
        "task": dict(circuit.task),
        "objective": dict(circuit.objective),
        "seed": circuit.seed,
        "metrics": dict(circuit.metrics),
    }
    artifact = circuit_artifact(circuit, folder / "circuit", facts)
    run.log_artifact(artifact, aliases=["latest", f"seed-{circuit.seed}"])
