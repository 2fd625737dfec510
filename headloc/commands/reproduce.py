"""`headloc reproduce NAME`: run a paper's experiment and print published beside measured.

A function vector is also refined (`headloc refine`), because the papers' main figures are about the
refined heads.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.commands.columns import columns
from headloc.commands.published import beside_published, changes
from headloc.errors import HeadlocError, suggest
from headloc.files import write_json, write_text
from headloc.references import (
    Comparison,
    load_reference,
    reference_names,
    refinement_metrics,
)
from headloc.references.comparison import UNMEASURED
from headloc.reporting.compared import measured_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from headloc.commands.localize import Finished
    from headloc.refinement.result import Refinement

CSV = (
    "quantity",
    "published",
    "measured",
    "low",
    "high",
    "n",
    "note",
    "meaning",
    "source",
    "metric",
)
REFINEMENT = "refinement"
"""Folder of the refinement in that of the run."""


def usage() -> str:
    """Return the help of the command, with every experiment that it knows."""
    names = "\n".join(f"    {name}" for name in reference_names())
    return (
        "headloc reproduce NAME [key=value ...]\n\n"
        "Runs `headloc localize experiment=NAME` with the options given, prints the published\n"
        "figures beside the measured ones, and writes them to reproduction.csv and\n"
        "reproduction.json in the output folder (outputs/reproduce/NAME/ unless output_dir is\n"
        "given). Options are those of `headloc localize --help`. A function vector is refined as\n"
        "well: options of `headloc refine --help` follow `refine.`, as in refine.doses=10, and\n"
        "refine=false leaves it out.\n\n"
        f"Names\n{names}"
    )


@dataclass(frozen=True, slots=True)
class Request:
    """What to reproduce.

    Attributes:
        name: the experiment.
        arguments: arguments of the localization.
        refine: options of the refinement; None to leave it out.
    """

    name: str
    arguments: tuple[str, ...]
    refine: tuple[str, ...] | None


def read_request(arguments: Sequence[str]) -> Request:
    """Return the experiment, and the arguments of the runs that reproduce it.

    Raises:
        HeadlocError: when no experiment is named first, it is unknown, or another one is given.
    """
    names = reference_names()
    if not arguments or "=" in arguments[0] or arguments[0].startswith("-"):
        raise HeadlocError(
            f"Name an experiment first: headloc reproduce NAME [key=value ...]. "
            f"Known: {', '.join(names)}."
        )
    name, *rest = arguments
    if name not in names:
        raise HeadlocError(f"There is no experiment {name!r} to reproduce. {suggest(name, names)}")
    given = {_key(argument) for argument in rest}
    if "experiment" in given:
        raise HeadlocError(
            f"experiment=... cannot be given here: {name} is the experiment. For another one name "
            "it in its place."
        )
    folder = f"output_dir=outputs/reproduce/{name}/${{now:%Y-%m-%d_%H-%M-%S}}"
    own = [f"experiment={name}", *([] if "output_dir" in given else [folder])]
    options = [text for text in rest if _key(text) != "refine" and not text.startswith("refine.")]
    return Request(name, (*own, *options), _refine_options(rest))


def _refine_options(arguments: Sequence[str]) -> tuple[str, ...] | None:
    """Return the options behind `refine.`, or None where refine=false stands.

    Raises:
        HeadlocError: for another value of refine, or an option that the run itself decides.
    """
    options = [text.removeprefix("refine.") for text in arguments if text.startswith("refine.")]
    for text in options:
        if _key(text) in ("circuit", "output_dir", "model", "task") or "=" not in text:
            raise HeadlocError(f"refine.{text} cannot be given here: it follows from the run.")
    for text in arguments:
        if _key(text) == "refine" and text not in ("refine=true", "refine=false"):
            raise HeadlocError(f"{text} should be refine=true or refine=false.")
    return None if "refine=false" in arguments else tuple(options)


def run(cfg: DictConfig, output_dir: Path, *, request: Request) -> Comparison | None:
    """Localize, refine a function vector, then compare with what was published.

    In a run of several processes only the first goes on behind the localization; the others return
    None.

    Args:
        cfg: the composed configuration of conf/localize.yaml with the experiment.
        output_dir: where to write; in a multi-run, the folder of this job.
        request: what to reproduce.
    """
    from headloc.commands import localize
    from headloc.reporting.console import Console
    from headloc.reporting.report import write_report

    reference = load_reference(request.name)
    options = _refinement(request)
    done = localize.finish(cfg, output_dir)
    if not done.first:
        return None
    refinement = _refine(done, options, cfg)
    found = beside_published(
        reference,
        done.result.circuit,
        {**done.result.metrics, **_figures(done, refinement)},
        given=changes(f"refine.{option}" for option in request.refine or ()),
        unrefined=UNMEASURED if request.refine is not None else "not measured: refine=false",
    )
    write_comparison(found, done.folder)
    report = done.folder / "report.html"
    done.extras.attempt(
        report.name,
        lambda: write_report(
            done.result, done.yaml, report, done.lm, comparison=found, refinement=refinement
        ),
    )
    console = Console()
    for line in printed(found):
        console.say(line)
    console.say(f"{'comparison':<15}{done.folder / 'reproduction.csv'}")
    console.say(f"{'report':<15}{report}")
    done.check()
    return found


def _refinement(request: Request) -> DictConfig | None:
    """Compose the refinement before any work is done, so that a wrong option is told at once."""
    if request.refine is None:
        return None
    from hydra import compose

    return compose("refine", list(request.refine))


def _refine(done: Finished, cfg: DictConfig | None, run_cfg: DictConfig) -> Refinement | None:
    """Refine the circuit that lies in a run's folder; None where there is nothing to refine."""
    circuit = done.result.circuit
    if cfg is None or circuit.objective["name"] != "function_vector" or not circuit.heads:
        return None
    from omegaconf import open_dict

    from headloc.commands import refine

    with open_dict(cfg):
        cfg.circuit = str(done.folder / "circuit")
        # Told in config.yaml; the model itself is the one that the run loaded.
        cfg.model = run_cfg.model
    return refine.run(cfg, done.folder / REFINEMENT, done.lm, done.extras)


def _figures(done: Finished, refinement: Refinement | None) -> dict[str, float]:
    return {} if refinement is None else refinement_metrics(done.folder / REFINEMENT)


def printed(found: Comparison) -> list[str]:
    """Return the comparison, line by line."""
    reference = found.reference
    lines = ["", f"published beside measured: {reference.experiment}, arXiv {reference.arxiv}"]
    if found.rows:
        header = ("quantity", "published", "measured", "95 % interval", "note")
        rows = [
            (row.quantity, row.published, measured_text(row) or "missing", row.interval, row.note)
            for row in found.rows
        ]
        lines += columns(header, rows)
    lines += ["", *_heads(found)]
    if found.changes:
        lines.append(f"options given  {' '.join(found.changes)}")
    return [*lines, f"note           {reference.note}"] if reference.note else lines


def write_comparison(found: Comparison, folder: Path) -> None:
    """Write reproduction.csv and reproduction.json."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in found.rows)
    write_text(folder / "reproduction.csv", buffer.getvalue())
    write_json(folder / "reproduction.json", _content(found))


def _content(found: Comparison) -> dict[str, Any]:
    reference, heads = found.reference, found.heads
    overlap: Any = None
    if heads is not None:
        overlap = {
            "published": [str(head) for head in heads.published],
            "selected": [str(head) for head in heads.selected],
            "ranks": list(heads.ranks),
            "selected_in_all": heads.selected_in_all,
            "total": heads.total,
            "expected_by_chance": heads.expected_by_chance,
        }
    return {
        "experiment": reference.experiment,
        "paper": reference.paper,
        "arxiv": reference.arxiv,
        "published": reference.published,
        "published_model": reference.model if reference.published else None,
        "model": found.model,
        "comparable": found.comparable,
        "rows": [asdict(row) for row in found.rows],
        "main_heads": overlap,
        "changes": list(found.changes),
        "note": reference.note,
    }


def _heads(found: Comparison) -> list[str]:
    heads, reference = found.heads, found.reference
    if heads is None:
        if not reference.published:
            return ["main heads     not applicable: nothing is published for this model"]
        if not reference.main_heads:
            return ["main heads     missing: the reference names none"]
        return [f"main heads     not applicable: those of {reference.model}, run on {found.model}"]
    ranked = zip(heads.published, heads.ranks, strict=True)
    places = ", ".join(f"{head} {'-' if rank is None else f'#{rank}'}" for head, rank in ranked)
    return [
        f"main heads     {len(heads.selected)} of {len(heads.published)} published ones are among "
        f"the {heads.selected_in_all} selected ({heads.expected_by_chance:.2f} by chance)",
        f"their ranks    {places} of {heads.total}",
    ]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
