"""A benchmark on the console and as files: bench.json with everything, and scaling.csv."""

from __future__ import annotations

from pathlib import Path

from headloc.bench.result import SCALING_COLUMNS, BenchResult, Measured
from headloc.commands.columns import columns
from headloc.files import csv_text, write_json, write_text

_MB = 2**20


def write_bench(result: BenchResult, folder: Path) -> None:
    """Write bench.json and, where axes were measured, scaling.csv."""
    if result.scaling:
        write_text(folder / "scaling.csv", csv_text(SCALING_COLUMNS, result.rows()))
    write_json(folder / "bench.json", result.to_dict())


def lines(result: BenchResult) -> list[str]:
    """Return what is printed."""
    run = result.circumstances
    model = run["model"]
    shown = [
        f"{model['name']}  {model['layers']} layers, width {run['width']}, {run['dtype']}, "
        f"{run['device_name']}, threads {run['threads']}",
        "",
    ]
    if result.ratios:
        header = ["ratio", "value", "95 % interval", "bar", "what was divided by what"]
        shown += [*columns(header, [_row(one) for one in result.ratios]), ""]
    if result.scaling:
        header = ["axis", "value", "ms a step", "to first", "MB", "to first"]
        shown += [*columns(header, _scaling(result)), ""]
    for name, found in result.localization.items():
        stages = ", ".join(f"{k} {v:.1f}" for k, v in found["seconds_by_stage"].items())
        shown += [f"localization {name}: {found['seconds']:.1f} s  ({stages})"]
    return shown


def _row(one: Measured) -> list[str]:
    interval = "" if one.low is None else f"{one.low:.3g} .. {one.high:.3g}"
    bar = "" if one.bar is None else f"{one.bar}: {'yes' if one.bar.reached(one.value) else 'NO'}"
    return [f"ratio/{one.name}", f"{one.value:.3g}", interval, bar, one.says]


def _scaling(result: BenchResult) -> list[list[str]]:
    return [
        [
            str(axis),
            str(value),
            f"{1e3 * seconds:.2f}",
            f"{relative:.2f}",
            f"{memory / _MB:.1f}",
            f"{grown:.2f}",
        ]
        for axis, value, _, _, seconds, _, _, relative, memory, grown in result.rows()
    ]
