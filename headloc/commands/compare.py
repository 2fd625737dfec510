"""`headloc compare`: methods of finding heads on the same prompts, beside the best sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.commands.build import build, build_lm, build_settings, checked_seed, plain
from headloc.errors import HeadlocError, suggest
from headloc.extras import Extras
from headloc.files import csv_text, file_name, usable_output_dir, write_json, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from headloc.baselines.method import Method
    from headloc.compare.run import Comparison
    from headloc.objectives import Objective


def run(cfg: DictConfig, output_dir: Path) -> Comparison:
    """Compare, print the table, and write compare.json, .csv, pictures, circuits and a report.

    Raises:
        HeadlocError: for a method or an off-value that is unknown.
        IncompleteError: when the pictures or the report cannot be written.
    """
    from omegaconf import OmegaConf

    from headloc.compare.picture import save_picture
    from headloc.compare.printed import printed
    from headloc.compare.report import write_report
    from headloc.compare.run import compare
    from headloc.compare.settings import CompareSettings
    from headloc.reporting.console import Console, quiet_lightning

    folder = usable_output_dir(output_dir)
    settings = plain(cfg)
    seed = checked_seed(settings["seed"])
    data = build_settings("data", CompareSettings, settings["data"])
    methods = build_methods(settings["methods"], settings["only"])
    objectives = build_objectives(settings["objective"], settings["off_values"])
    task = build("task", settings["task"])
    task.check_items(items="fit")
    task.check_items(items="score")
    console = Console()
    quiet_lightning()
    with console.stage("loading"):
        lm = build_lm(cfg.model)
    found = compare(lm, task, methods, objectives, data, seed=seed, stages=console.stage)
    write_results(found, folder)
    report, yaml, extras = folder / "report.html", OmegaConf.to_yaml(cfg, resolve=True), Extras()
    extras.attempt("pictures", lambda: save_picture(found, folder))
    extras.attempt(report.name, lambda: write_report(found, lm, task.name, yaml, report))
    for line in printed(found):
        console.say(line)
    console.say("")
    console.say(f"records  {folder / 'compare.json'}")
    console.say(f"report   {report}")
    extras.check(folder)
    return found


def build_methods(options: dict[str, Any], only: Any) -> dict[str, Method]:
    """Make the methods that a configuration names, in its order.

    Args:
        options: settings by name, each with a `_target_`; null leaves one out.
        only: names of the methods to run; all when None.

    Raises:
        HeadlocError: for a name that is not among them, or that cannot name a folder.
    """
    known = {
        file_name(str(name), "A method"): own for name, own in options.items() if own is not None
    }
    chosen = [only] if isinstance(only, str) else only
    for name in chosen or ():
        if name not in known:
            raise HeadlocError(f"only names {name!r}, no method here. {suggest(str(name), known)}")
    return {
        name: build(f"methods.{name}", own)
        for name, own in known.items()
        if chosen is None or name in chosen
    }


def build_objectives(options: dict[str, Any], off_values: Any) -> dict[str, Objective]:
    """Make the objective once per off-value.

    Raises:
        HeadlocError: for an unknown off-value, or an objective that has none.
    """
    if off_values is None:
        objective = build("objective", options)
        return {str(getattr(objective, "off_value", objective.name)): objective}
    given = [off_values] if isinstance(off_values, str) else off_values
    if not isinstance(given, list) or not given:
        raise HeadlocError(f"off_values={off_values!r} must be a list, as in off_values=[mean].")
    if "off_value" not in options:
        raise HeadlocError(
            f"off_values={given} is not for this objective, whose closed heads put out one thing "
            "only. Set off_values=null."
        )
    return {str(off): build("objective", {**options, "off_value": off}) for off in given}


def write_results(found: Comparison, folder: Path) -> None:
    """Write compare.json (a list of records), compare.csv, summary.json and the chosen circuits."""
    from headloc.compare.records import COLUMNS, records
    from headloc.compare.summary import summary

    rows = records(found)
    write_json(folder / "compare.json", rows)
    joined = [{**row, "heads": " ".join(row["heads"])} for row in rows]
    cells = [[row[key] for key in COLUMNS] for row in joined]
    write_text(folder / "compare.csv", csv_text(COLUMNS, cells))
    write_json(folder / "summary.json", summary(found))
    for result in found.results:
        for name, many in result.found.items():
            circuit = many[0].circuit
            if circuit is not None:
                circuit.save(folder / "circuits" / result.off_value / name)
