"""The refinement as a report: the verdict table, the scan, the tests, the rivals and the cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.files import write_text
from headloc.refinement.charts import dose_chart, layer_chart
from headloc.refinement.printed import CONTEXTS, SPLITS
from headloc.refinement.significance import FALSE_DISCOVERY_RATE, GAIN_SHARE, HeadEffect
from headloc.refinement.size_chart import size_chart
from headloc.reporting.page import render
from headloc.reporting.particulars import particulars
from headloc.reporting.text import model_name, percent, plural, task_name
from headloc.reporting.versions import package_versions

if TYPE_CHECKING:
    from headloc.circuit import Circuit
    from headloc.refinement.result import Refinement
    from headloc.refinement.rows import Difference
    from headloc.refinement.size_curve import SizeCurve
    from headloc.refinement.table import SplitTable

SHOWN = 40
"""Heads of the significance table; all of them are in refinement.json."""

_TEMPLATE = "refinement_report.html.j2"

_MEANINGS = {
    "clean": "the model as it is, behind its demonstrations",
    "without_main": "main heads at their cross-task mean at the last token: are they necessary?",
    "without_selected": "selected heads at their cross-task mean at the last token",
    "zero_shot": "the query alone",
    "selected": "unit coefficients, every other head at its off-value",
    "significant": "unit coefficients, every other head at its off-value",
    "main": "the other selected heads at their cross-task mean",
    "main_alone": "unit coefficients, every other head at its off-value",
    "aie": "as many as were selected, by average indirect effect (Todd et al. 2024)",
    "aie_main": "as many as there are main heads, by average indirect effect",
    "residual": "the whole stream replaced (Hendel et al. 2023); layer chosen on the scan's "
    "prompts",
    "shuffled": "demonstrations whose labels are permuted",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the verdict table: its figures by split, and the range over random sets."""

    label: str
    meaning: str
    figures: tuple[str, ...]
    spreads: tuple[str, ...]


def write_refinement_report(
    result: Refinement, circuit: Circuit, config_yaml: str, path: Path
) -> None:
    """Write the report of a refinement.

    Args:
        result: what the refinement found.
        circuit: the circuit that was refined.
        config_yaml: the resolved configuration as text.
        path: the HTML file.
    """
    context = {
        "task": task_name(circuit.task),
        "model": model_name(circuit.model),
        "refinement": refinement_context(result, alone=True),
        "details": {
            **particulars(circuit),
            "Refinement": {**asdict(result.settings), "seed": result.seed},
        },
        "versions": package_versions(),
        "config": config_yaml,
    }
    write_text(path, render(_TEMPLATE, context))


def refinement_context(result: Refinement, *, alone: bool = False) -> dict[str, Any]:
    """Return what the sections on a refinement show.

    Args:
        result: what the refinement found.
        alone: whether the page is about nothing else, and so tells the headline itself.
    """
    significance = result.significance
    effects = sorted(significance.effects, key=lambda one: (one.p, -one.gain, one.head))
    return {
        "alone": alone,
        "headline": headline(result),
        "selected": len(result.scan.heads),
        "significant": significance.significant,
        "main": significance.main,
        "reason": significance.reason,
        "clean": significance.clean_accuracy,
        "insertion": result.insertion,
        "rate": FALSE_DISCOVERY_RATE,
        "share": GAIN_SHARE,
        "scan_prompts": result.scan.correct_HCN.shape[2],
        "doses": result.scan.doses,
        "splits": [(SPLITS[name], len(t.contexts)) for name, t in result.tables.items()],
        "groups": _groups(result),
        "differences": [
            _difference(SPLITS[name], one, t)
            for name, t in result.tables.items()
            for one in t.differences
        ],
        "sizes": [_size_section(name, curve) for name, curve in result.sizes.items()],
        "effects": [(effect, _verdict(effect, result)) for effect in effects[:SHOWN]],
        "left_out": max(0, len(effects) - SHOWN),
        "chart": dose_chart(result),
        "layers": layer_chart(result),
        "residual_layer": result.residual_layer,
        "residual_accuracy": result.residual_accuracies[result.residual_layer],
        "aie": _aie(result),
        "scan_cost": result.cost,
        "stages": _stages(result),
        "equivalents": result.ledger.forward_equivalents(),
    }


def headline(result: Refinement) -> dict[str, str]:
    """Return the parts of the first sentence, on held-out tasks where there are any."""
    name = "held_out" if "held_out" in result.tables else "seen"
    found = {row.key: percent(row.share_N.mean()) for row in result.tables[name].rows}
    wanted = ("clean", "zero_shot", "selected", "main", "aie", "random", "residual")
    heads = len(result.scan.heads)
    return {
        "heads": f"{len(result.significance.main)} of {plural(heads, 'selected head')}",
        "split": SPLITS[name],
        **{key: found[key] for key in wanted if key in found},
    }


def _groups(result: Refinement) -> list[tuple[str, list[Line]]]:
    """Return the verdict table: a group of lines per context, as on the console."""
    tables = list(result.tables.values())
    groups = []
    for context, title in CONTEXTS.items():
        keys = [row.key for row in tables[0].rows if row.context == context]
        if keys:
            groups.append((title, [_line(result, key) for key in keys]))
    return groups


def _line(result: Refinement, key: str) -> Line:
    rows = [table.row(key) for table in result.tables.values()]
    spreads = tuple(
        "" if s is None else f"{s[0]:.3f} to {s[1]:.3f}" for s in (r.spread for r in rows)
    )
    count = len(rows[0].correct_RN)
    meaning = _MEANINGS.get(key.removeprefix("shuffled_"), "")
    if key.startswith("head/"):
        meaning = "its best dose, chosen on the scan's prompts"
    elif count > 1:
        meaning = f"mean over {count} sets drawn at random"
    return Line(
        rows[0].label, meaning, tuple(str(row.accuracy(result.seed)) for row in rows), spreads
    )


def _difference(split: str, one: Difference, table: SplitTable) -> dict[str, str]:
    first, second = table.row(one.first), table.row(one.second)
    return {
        "split": split,
        "pair": f"{first.label} minus {second.label}",
        "context": CONTEXTS[first.context],
        "estimate": str(one.estimate),
        "changed": f"{one.first_only} / {one.second_only}",
        "p": f"{one.p:.2g}",
    }


def _size_section(name: str, curve: SizeCurve) -> dict[str, Any]:
    """Return what the report shows of the sizes on one split."""
    return {
        "chart": size_chart(curve, SPLITS[name]),
        "points": curve.points,
        "better": curve.sizes_where("better"),
        "worse": curve.sizes_where("worse"),
    }


def _verdict(effect: HeadEffect, result: Refinement) -> str:
    if effect.head in result.significance.main:
        return "main"
    return "significant" if effect.significant else ""


def _aie(result: Refinement) -> dict[str, Any] | None:
    """Return AIE's best heads, and how many of the selected and main ones are among as many."""
    if result.aie is None:
        return None
    scores, layout = result.aie.scores.tolist(), result.aie.layout
    selected = len(result.sets.selected)
    ranking = result.aie.ranking()
    return {
        "best": [(head, scores[layout.index(head)]) for head in ranking[:8]],
        "shared": len(set(ranking[:selected]) & set(result.scan.heads)),
        "selected": selected,
        "ranks": [(head, ranking.index(head) + 1) for head in result.significance.main],
        "total": len(ranking),
    }


def _stages(result: Refinement) -> list[tuple[str, int, float]]:
    """Return (stage, tokens run, forward-equivalents)."""
    return [
        (name.replace("_", " "), stage.forward_tokens, result.ledger.forward_equivalents(name))
        for name, stage in result.ledger.stages.items()
    ]
