"""The files of a refinement: JSON, CSV, the raw outcomes of the scan, and the main circuit.

refinement.json   selected, significant and main heads with their p, q, gain and best dose
table.json/.csv   the verdict table and the differences between its rows
outcomes.csv      every prompt of the table with its outcome under every condition
doses.csv         accuracy, prompts put right and put wrong, by head and dose
scan.safetensors  correct [H, C, N] of the dose scan
aie.csv           all heads, ranked by average indirect effect
sizes.csv         the learned ranking against AIE's at every size, with tests
sizes.safetensors their outcomes, learned and aie [S, N] of every split
main/             the main heads as a circuit
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.circuit import Circuit
from headloc.files import csv_text, write_bytes, write_json, write_text
from headloc.refinement.significance import FALSE_DISCOVERY_RATE, GAIN_SHARE, HeadEffect

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.refinement.result import Refinement
    from headloc.refinement.table import SplitTable

MAIN = "main"
"""Folder of the circuit of the main heads."""


def write_refinement(result: Refinement, circuit: Circuit, folder: Path, lm: FrozenLM) -> None:
    """Write everything; refinement.json last, so that where there is one the rest is complete."""
    write_tables(result, folder)
    write_text(folder / "doses.csv", csv_text(_DOSE_COLUMNS, _dose_rows(result)))
    _write_scan(result, folder / "scan.safetensors")
    # What an earlier run left must not stand beside these figures.
    for name in ("aie.csv", "sizes.csv", "sizes.safetensors"):
        (folder / name).unlink(missing_ok=True)
    if result.aie is not None:
        write_text(folder / "aie.csv", csv_text(_AIE_COLUMNS, _aie_rows(result)))
    if result.sizes:
        write_text(folder / "sizes.csv", csv_text(_SIZE_COLUMNS, _size_rows(result)))
        _write_size_outcomes(result, folder / "sizes.safetensors")
    _write_main(result, circuit, folder / MAIN)
    write_json(folder / "refinement.json", summary(result, circuit, lm))


def summary(result: Refinement, circuit: Circuit, lm: FrozenLM) -> dict[str, Any]:
    """Return the content of refinement.json."""
    significance = result.significance
    return {
        "model": lm.source.to_dict(),
        "task": dict(circuit.task),
        "objective": dict(circuit.objective),
        "insertion": asdict(result.insertion),
        "settings": asdict(result.settings),
        "seed": result.seed,
        "clean_accuracy": significance.clean_accuracy,
        "selected": [str(head) for head in result.scan.heads],
        "significant": [str(head) for head in significance.significant],
        "main": [str(head) for head in significance.main],
        "no_main_because": significance.reason,
        "heads": [_effect(effect, effect.head in significance.main) for effect in
                  significance.effects],
        "rules": {"false_discovery_rate": FALSE_DISCOVERY_RATE, "gain_share": GAIN_SHARE},
        "sizes": {
            split: {
                "n": curve.prompts,
                "better": curve.sizes_where("better"),
                "worse": curve.sizes_where("worse"),
            }
            for split, curve in result.sizes.items()
        },
        "residual": {
            "layer": result.residual_layer,
            "accuracies": list(result.residual_accuracies),
        },
        "scan_cost": {**asdict(result.cost), "tokens": result.cost.tokens,
                      "full_depth_tokens": result.cost.full_depth_tokens},
        "cost": result.ledger.to_dict(),
    }  # fmt: skip


def write_tables(result: Refinement, folder: Path) -> None:
    """Write the verdict table and its outcomes."""
    rows = [
        row.to_dict(split, result.seed)
        for split, table in result.tables.items()
        for row in table.rows
    ]
    differences = [
        one.to_dict(split) for split, table in result.tables.items() for one in table.differences
    ]
    write_json(folder / "table.json", {"rows": rows, "differences": differences})
    write_text(folder / "table.csv", csv_text(tuple(rows[0]), (list(row.values()) for row in rows)))
    keys = list(dict.fromkeys(k for t in result.tables.values() for k, _ in _outcomes(t)))
    columns = ("split", "index", "task", "query", "answer", *keys)
    write_text(folder / "outcomes.csv", csv_text(columns, _outcome_rows(result, keys)))


def main_circuit(result: Refinement, circuit: Circuit) -> Circuit:
    """Return the circuit of the main heads, with the gates and means of the one it was made of."""
    return replace(
        circuit,
        heads=tuple(sorted(result.significance.main)),
        selection={
            "rule": MAIN,
            "gain_share": GAIN_SHARE,
            "false_discovery_rate": FALSE_DISCOVERY_RATE,
            "doses": result.settings.doses,
            "among": len(circuit.heads),
        },
        seed=result.seed,
        metrics={},
    )


def _write_main(result: Refinement, circuit: Circuit, path: Path) -> None:
    """Write the main circuit; where there are no main heads, an earlier one must not stay."""
    if result.significance.main:
        main_circuit(result, circuit).save(path)
    elif (path / "circuit.json").is_file():
        shutil.rmtree(path)


def _effect(effect: HeadEffect, main: bool) -> dict[str, Any]:
    return {**asdict(effect), "head": str(effect.head), "gain": effect.gain, "main": main}


_DOSE_COLUMNS = ("layer", "head", "dose", "accuracy", "fixed", "broken", "n")


def _dose_rows(result: Refinement) -> Iterable[Sequence[object]]:
    scan = result.scan
    for h, head in enumerate(scan.heads):
        for c, dose in enumerate(scan.doses):
            yield (
                head.layer, head.head, dose, float(scan.accuracy_HC[h, c]),
                int(scan.fixed_HC[h, c]), int(scan.broken_HC[h, c]), scan.correct_HCN.shape[2],
            )  # fmt: skip


def _write_scan(result: Refinement, path: Path) -> None:
    import torch
    from safetensors.torch import save

    correct = torch.from_numpy(result.scan.correct_HCN).to(torch.uint8).contiguous()
    heads = torch.tensor([[head.layer, head.head] for head in result.scan.heads])
    # No metadata of our own: its order would differ from run to run.
    write_bytes(path, save({"correct": correct, "heads": heads}, metadata={"format": "pt"}))


_AIE_COLUMNS = ("rank", "layer", "head", "aie", "selected", "main")


def _aie_rows(result: Refinement) -> Iterable[Sequence[object]]:
    if result.aie is None:
        return
    scores_A = result.aie.scores
    for rank, head in enumerate(result.aie.ranking(), start=1):
        index = result.aie.layout.index(head)
        yield (
            rank, head.layer, head.head, float(scores_A[index]),
            int(index in result.sets.selected), int(index in result.sets.main),
        )  # fmt: skip


_SIZE_COLUMNS = (
    "split", "heads", "learned", "learned_low", "learned_high", "aie", "aie_low", "aie_high",
    "difference", "low", "high", "n", "learned_only", "aie_only", "p", "q", "verdict",
)  # fmt: skip


def _size_rows(result: Refinement) -> Iterable[Sequence[object]]:
    for split, curve in result.sizes.items():
        for point in curve.points:
            figures = (point.learned, point.aie, point.difference)
            yield (
                split, point.size, *(v for one in figures for v in (one.value, one.low, one.high)),
                curve.prompts, point.learned_only, point.aie_only, point.p, point.q, point.verdict,
            )  # fmt: skip


def _write_size_outcomes(result: Refinement, path: Path) -> None:
    import torch
    from safetensors.torch import save

    tensors = {
        f"{split}/{name}": torch.from_numpy(correct_SN).to(torch.uint8).contiguous()
        for split, curve in result.sizes.items()
        for name, correct_SN in (("learned", curve.learned_SN), ("aie", curve.aie_SN))
    }
    write_bytes(path, save(tensors, metadata={"format": "pt"}))


def _outcomes(table: SplitTable) -> Iterable[tuple[str, Any]]:
    """Yield (column, outcomes [N]) of a split: one column per row, for random sets one per set."""
    for row in table.rows:
        single = len(row.correct_RN) == 1
        for number, correct_N in enumerate(row.correct_RN, start=1):
            yield row.key if single else f"{row.key}/{number:02d}", correct_N


def _outcome_rows(result: Refinement, keys: Sequence[str]) -> Iterable[Sequence[object]]:
    for split, table in result.tables.items():
        found = dict(_outcomes(table))
        for i, example in enumerate(table.contexts.few_shot.examples):
            cells = [int(found[key][i]) if key in found else "" for key in keys]
            yield [split, i, example.task, example.query, example.answer, *cells]
