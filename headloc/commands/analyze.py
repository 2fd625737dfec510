"""`headloc analyze`: ask a circuit one question, or all of them, and write one report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.commands.build import build, build_lm, checked_seed, plain
from headloc.commands.evaluate import own_model, own_task
from headloc.errors import HeadlocError
from headloc.extras import Extras
from headloc.files import usable_output_dir, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from headloc.analysis.base import Analysis, Findings, Subject
    from headloc.circuit import Circuit
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import TaskFamily


def run(cfg: DictConfig, output_dir: Path) -> dict[str, Findings]:
    """Run the analyses, write findings/NAME/, the report and the W&B run, and print what is found.

    Raises:
        HeadlocError: for a circuit that is broken or of another model, or a single analysis that
            does not apply to it.
    """
    from headloc.analysis.report import write_report
    from headloc.reporting.console import Console

    folder = usable_output_dir(output_dir)
    settings, yaml = _settings(cfg, folder)
    analyses = chosen(settings["analysis"])
    console = Console()
    with console.stage("loading"):
        subject = _subject(cfg, settings)
    found, skipped = _run_all(analyses, subject, settings, folder, console)
    write_text(folder / "config.yaml", yaml)
    done = [(one, found[one.name]) for one in analyses if one.name in found]
    report, extras = folder / "report.html", Extras()
    extras.attempt(report.name, lambda: write_report(subject, done, skipped, yaml, report))
    for one in analyses:
        if one.name in found:
            console.say(f"{one.name}: {one.question}")
            for sentence in found[one.name].sentences:
                console.say(f"  {sentence}")
    console.say(f"findings  {folder / 'findings'}")
    console.say(f"report    {report}")
    extras.check(folder)
    return found


def chosen(group: Any) -> list[Analysis]:
    """Build the analysis that the group names, or each of those that it holds by name.

    Raises:
        HeadlocError: for options that an analysis does not take.
    """
    if isinstance(group, Mapping) and "_target_" not in group:
        return [build(f"analysis.{name}", options) for name, options in group.items()]
    return [build("analysis", group)]


def _settings(cfg: DictConfig, folder: Path) -> tuple[dict[str, Any], str]:
    from omegaconf import OmegaConf, open_dict

    with open_dict(cfg):
        cfg.output_dir = str(folder)
    settings = plain(cfg)
    checked_seed(settings["seed"])
    prompts = settings["mean_prompts"]
    if not isinstance(prompts, int) or isinstance(prompts, bool) or prompts < 2:
        raise HeadlocError(f"mean_prompts={prompts!r} must be a whole number, 2 or above.")
    return settings, OmegaConf.to_yaml(cfg, resolve=True)


def _subject(cfg: DictConfig, settings: dict[str, Any]) -> Subject:
    from headloc.analysis.base import Subject
    from headloc.circuit import Circuit

    if settings["circuit"] is None:
        lm, task = _own_choice(cfg, settings)
        return Subject(_no_circuit(lm, task), lm, task, settings["seed"], settings["mean_prompts"])
    circuit = Circuit.load(str(settings["circuit"]))
    lm = build_lm(cfg.model) if cfg.get("model") else own_model(circuit)
    task = build("task", settings["task"]) if settings.get("task") else own_task(circuit)
    circuit.check_model(lm)
    return Subject(circuit, lm, task, settings["seed"], settings["mean_prompts"])


def _own_choice(cfg: DictConfig, settings: dict[str, Any]) -> tuple[FrozenLM, TaskFamily]:
    """Return model and task of an analysis that needs no circuit: by default the bundled facts."""
    from headloc.bundled import load_bundled
    from headloc.tasks import Facts

    lm = build_lm(cfg.model) if cfg.get("model") else load_bundled()
    return lm, build("task", settings["task"]) if settings.get("task") else Facts()


def _no_circuit(lm: FrozenLM, task: TaskFamily) -> Circuit:
    """Return a circuit without heads, where no circuit is given."""
    import torch

    from headloc.circuit import Circuit

    nothing_A = torch.zeros(lm.layout.total)
    return Circuit(
        heads=(),
        gates=nothing_A,
        scores=nothing_A.clone(),
        model=lm.source.to_dict(),
        objective={"name": "in_place", "off_value": "zero", "positions": "last"},
        task=task.describe(),
        selection={},
        seed=0,
    )


def _run_all(
    analyses: list[Analysis], subject: Subject, settings: dict[str, Any], folder: Path, console: Any
) -> tuple[dict[str, Findings], dict[str, str]]:
    """Return findings by name, and the reasons why analyses were left out.

    Each analysis is saved as soon as it is done, so that a later failure costs nothing.
    """
    from headloc.analysis.base import NotApplicable
    from headloc.analysis.saving import save_findings
    from headloc.analysis.tracking import log_findings, use_circuit
    from headloc.reporting.loggers import open_logger

    found: dict[str, Findings] = {}
    skipped: dict[str, str] = {}
    logger = open_logger(settings["logger"], folder, settings, job_type="analyze")
    try:
        if settings["circuit"] is not None:
            use_circuit(logger.wandb_run, subject.circuit, Path(str(settings["circuit"])))
        for one in analyses:
            try:
                with console.stage(one.name) as progress:
                    found[one.name] = one.run(subject, progress)
            except NotApplicable as reason:
                if len(analyses) == 1:
                    raise
                skipped[one.name] = str(reason)
                console.note(f"{one.name} does not apply: {reason}")
                continue
            save_findings(one, subject, found[one.name], folder)
            log_findings(logger.wandb_run, one, found[one.name], folder)
    finally:
        logger.close()
    return found, skipped
