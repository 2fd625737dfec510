"""`headloc refine`: from the selected heads of a function vector to those that carry the task."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from headloc.commands.build import build, build_lm, checked_seed, plain
from headloc.commands.evaluate import own_model, own_objective, own_task
from headloc.commands.fitting import check_same_model, check_same_template
from headloc.extras import Extras
from headloc.files import usable_output_dir, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from headloc.circuit import Circuit
    from headloc.lm.frozen import FrozenLM
    from headloc.refinement.result import Refinement


def run(
    cfg: DictConfig, output_dir: Path, lm: FrozenLM | None = None, extras: Extras | None = None
) -> Refinement:
    """Refine a circuit, print the table and write the files.

    Args:
        cfg: the composed configuration of conf/refine.yaml.
        output_dir: where to write.
        lm: the model, where it is loaded already; `model` of the configuration is not read then.
        extras: takes account of pictures and a report that cannot be written, for a caller who
            tells of them; otherwise they are told here.

    Raises:
        HeadlocError: for a circuit that is broken, of another model, template or objective.
        IncompleteError: when the pictures or the report cannot be written.
    """
    from headloc.circuit import Circuit
    from headloc.refinement.printed import lines
    from headloc.refinement.result import check_refinable
    from headloc.refinement.run import refine
    from headloc.refinement.settings import RefineSettings
    from headloc.reporting.console import Console

    folder = usable_output_dir(output_dir)
    options = plain(cfg)
    seed = checked_seed(options["seed"])
    settings = RefineSettings(
        **{field.name: options[field.name] for field in fields(RefineSettings)}
    )
    circuit = Circuit.load(str(options["circuit"]))
    check_refinable(circuit.objective, circuit.heads, circuit.mlps)
    console = Console()
    with console.stage("loading"):
        if lm is None:
            lm = build_lm(cfg.model) if cfg.get("model") else own_model(circuit)
        task = build("task", plain(cfg.task)) if cfg.get("task") else own_task(circuit)
        circuit.check_model(lm)
        check_same_model(circuit, lm)
        check_same_template(circuit, task, options["circuit"])
    with console.stage("task means") as progress:
        objective = own_objective(
            circuit, lm, task, seed=seed, prompts=settings.mean_prompts, progress=progress
        )
    result = refine(
        lm,
        task,
        objective,
        circuit.heads,
        scores=circuit.scores,
        settings=settings,
        seed=seed,
        stages=console.stage,
    )
    # Another task than the circuit's own has means of its own.
    judged = _judged(circuit, lm, task.describe(), objective.tensors())
    own = extras or Extras()
    _write(result, judged, cfg, folder, lm, own)
    for line in lines(result):
        console.say(line)
    console.say(f"refinement  {folder / 'refinement.json'}")
    console.say(f"report      {folder / 'report.html'}")
    if extras is None:
        own.check(folder)
    return result


def _judged(circuit: Circuit, lm: FrozenLM, task: object, tensors: object) -> Circuit:
    from dataclasses import replace

    return replace(circuit, model=lm.source.to_dict(), task=task, tensors=tensors)  # type: ignore[arg-type]


def _write(
    result: Refinement,
    circuit: Circuit,
    cfg: DictConfig,
    folder: Path,
    lm: FrozenLM,
    extras: Extras,
) -> None:
    """Write the refinement, then what can be made again of it."""
    from omegaconf import OmegaConf, open_dict

    from headloc.refinement.picture import save_dose_picture, save_size_picture
    from headloc.refinement.report import write_refinement_report
    from headloc.refinement.writing import write_refinement
    from headloc.reporting.pictures import caption

    with open_dict(cfg):
        cfg.output_dir = str(folder)
    yaml = OmegaConf.to_yaml(cfg, resolve=True)
    write_text(folder / "config.yaml", yaml)
    write_refinement(result, circuit, folder, lm)
    about, report = caption(circuit), folder / "report.html"
    extras.attempt("pictures", lambda: save_dose_picture(result, folder, about))
    extras.attempt("pictures", lambda: save_size_picture(result, folder, about))
    extras.attempt(report.name, lambda: write_refinement_report(result, circuit, yaml, report))
