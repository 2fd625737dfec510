"""A path as files: every gate set as a circuit, and tables of the path.

    path.csv              one row per gate set
    path/NNN/             the gate set of that row as a circuit
    path/curve.csv        accuracy of the rankings by size
    path/stability.csv    how often each head is chosen

Of a head, stability.csv tells the share of the seeds that emit it at each penalty, and the share of
the seeds that have it among the first n of their ranking.

Shapes: W penalties, N sizes of the curve.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from headloc.bank.result import GateSet, PathResult
from headloc.circuit import Circuit
from headloc.components import MlpId
from headloc.files import write_text
from headloc.heads import HeadId
from headloc.reporting.feed_forward import all_components

MEMBER_COLUMNS = ("number", "weight", "seed", "heads", "accuracy", "names")
CURVE_COLUMNS = ("heads", "accuracy", "seeds_mean", "seeds_smallest", "seeds_largest")


def write_path(path: PathResult, circuit: Circuit, folder: Path) -> None:
    """Write a path below `folder`.

    Args:
        path: what the bank found.
        circuit: the recommended circuit, which names model, task and objective.
        folder: the output folder of the run.
    """
    for number, own in enumerate(path.gate_sets, start=1):
        member_circuit(own, path, circuit).save(folder / "path" / f"{number:03d}")
    write_text(folder / "path.csv", _csv(MEMBER_COLUMNS, member_rows(path, circuit)))
    write_text(folder / "path" / "curve.csv", _csv(CURVE_COLUMNS, curve_rows(path)))
    penalties = (f"weight_{weight!r}" for weight in path.weights)
    sizes = (f"size_{point.size}" for point in path.curve)
    columns = ("layer", "head", "rank", *penalties, *sizes)
    write_text(folder / "path" / "stability.csv", _csv(columns, _stability_rows(path, circuit)))


def member_circuit(own: GateSet, path: PathResult, circuit: Circuit) -> Circuit:
    """Return a gate set of the bank as a circuit of the heads that it emits."""
    names = all_components(circuit)
    chosen = [names[index] for index in own.heads]
    kept = {} if path.full == 0 else {"path/kept": own.accuracy / path.full}
    count, part = len(circuit.gates), circuit.feed_forward
    if part is not None:
        blocks = tuple(name.layer for name in chosen if isinstance(name, MlpId))
        part = replace(part, kept=blocks, gates=own.gates[count:], scores=own.scores[count:])
    return replace(
        circuit,
        heads=tuple(name for name in chosen if isinstance(name, HeadId)),
        gates=own.gates[:count],
        scores=own.scores[:count],
        feed_forward=part,
        selection={"rule": "path_member", "weight": own.member.weight, "seed": own.member.seed},
        seed=own.member.seed,
        metrics={"path/accuracy": own.accuracy, **kept},
    )


def member_rows(path: PathResult, circuit: Circuit) -> list[list[object]]:
    """Return the cells of every gate set in the order of `MEMBER_COLUMNS`."""
    names, total = all_components(circuit), len(circuit.gates)
    return [
        [
            number,
            own.member.weight,
            own.member.seed,
            sum(index < total for index in own.heads),
            own.accuracy,
            " ".join(str(names[index]) for index in own.heads),
        ]
        for number, own in enumerate(path.gate_sets, start=1)
    ]


def curve_rows(path: PathResult) -> list[list[object]]:
    """Return the cells of every size in the order of `CURVE_COLUMNS`."""
    return [
        [
            point.size,
            point.accuracy,
            point.seeds.mean,
            point.seeds.smallest,
            point.seeds.largest,
        ]
        for point in path.curve
    ]


def _stability_rows(path: PathResult, circuit: Circuit) -> Iterable[list[object]]:
    names, ranks = all_components(circuit), path.ranking.tolist()
    by_penalty, by_size = path.stability_WA.T.tolist(), path.stability_NA.T.tolist()
    for name, rank, share_W, share_N in zip(names, ranks, by_penalty, by_size, strict=True):
        head = name.head if isinstance(name, HeadId) else "MLP"
        yield [name.layer, head, rank, *share_W, *share_N]


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row)
    return buffer.getvalue()
