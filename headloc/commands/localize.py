"""`headloc localize`: from a configuration to a circuit, its verdict and its report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.commands.build import (
    build,
    build_lm,
    build_settings,
    check_options,
    checked_seed,
    plain,
)
from headloc.commands.resuming import Resumable, fingerprint
from headloc.extras import Extras
from headloc.files import usable_output_dir, write_json, write_text
from headloc.ranks import Ranks, ranks_of
from headloc.run_note import CHECKPOINT, with_resume

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from headloc.lm.frozen import FrozenLM
    from headloc.localizer.run import Localization


@dataclass(frozen=True, slots=True)
class Finished:
    """A localization that lies in its folder.

    Attributes:
        result: what it found.
        lm: the model, for work that goes on from here.
        folder: the output folder.
        yaml: the resolved configuration as text.
        first: whether this is the process that writes and speaks.
        extras: what came with the result and could not be written.
    """

    result: Localization
    lm: FrozenLM
    folder: Path
    yaml: str
    first: bool = True
    extras: Extras = field(default_factory=Extras)

    def check(self) -> None:
        """Tell what is missing beside the result.

        Raises:
            IncompleteError: when anything is.
        """
        self.extras.check(self.folder, f"Then make them: {with_resume(self.folder)}.")


def run(cfg: DictConfig, output_dir: Path) -> Localization:
    """Localize, write everything under `output_dir` and print the table of heads.

    Args:
        cfg: the composed configuration of conf/localize.yaml.
        output_dir: where to write; in a multi-run, the folder of this job.

    In a run of several processes only the first writes, logs and speaks.

    Raises:
        IncompleteError: when the result is saved but its pictures or its report are not.
    """
    finished = finish(cfg, output_dir)
    finished.check()
    return finished.result


def finish(cfg: DictConfig, output_dir: Path) -> Finished:
    """Do what `run` does, and return the model with the result and what is missing beside it."""
    folder = usable_output_dir(output_dir)
    settings = _checked(cfg, folder)
    ranks = ranks_of(settings["trainer"])
    run = Resumable.of("localize", folder, settings, writes=ranks.first)
    resume_from = folder / CHECKPOINT if run.resume and (folder / CHECKPOINT).is_file() else None
    with run.noted():
        return _finish(cfg, run, settings, ranks, resume_from)


def _finish(
    cfg: DictConfig,
    run: Resumable,
    settings: dict[str, Any],
    ranks: Ranks,
    resume_from: Path | None,
) -> Finished:
    from headloc.reporting.console import Console

    folder, console = run.run.folder, Console(quiet=not ranks.first)
    with console.stage("loading"):
        run_parts = _parts(cfg, settings, ranks)
    lm = run_parts["lm"]
    run_parts["journal"] = run.journal(
        model=lm.source.fingerprint, task=fingerprint(run_parts["task"].describe())
    )
    logger = _logger(settings, folder, ranks)
    try:
        result = _localize(run_parts, settings, logger, console, resume_from)
        if not ranks.first:
            return Finished(result, lm, folder, settings["yaml"], first=False)
        finished = Finished(result, lm, folder, settings["yaml"])
        _write(finished)
        from headloc.reporting.wandb_run import log_result

        log_result(logger, result, settings, folder)
    finally:
        logger.close()
    console.summary(result, folder)
    return finished


def _checked(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Resolve the configuration; keep its text, which the report shows and config.yaml holds."""
    from omegaconf import OmegaConf, open_dict

    with open_dict(cfg):
        cfg.output_dir = str(folder)
    settings = plain(cfg)
    settings["yaml"] = OmegaConf.to_yaml(cfg, resolve=True)
    checked_seed(settings["seed"])
    return settings


def _parts(cfg: DictConfig, settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Build everything that can be wrong before the model is loaded, then the model."""
    from lightning import Trainer

    from headloc.localizer.module import OptimizerSettings
    from headloc.localizer.run import check_parts
    from headloc.localizer.settings import DataSettings, VerdictSettings
    from headloc.localizer.strategy import check_strategy

    built: dict[str, Any] = {
        name: build(name, settings[name])
        for name in ("task", "objective", "gates", "sparsity", "selection")
    }
    for name, cls in (
        ("data", DataSettings),
        ("optimizer", OptimizerSettings),
        ("verdict", VerdictSettings),
    ):
        built[name] = build_settings(name, cls, settings[name])
    built["callbacks"] = [
        build(f"callbacks.{name}", options)
        for name, options in settings["callbacks"].items()
        if options is not None
    ]
    check_options("trainer", Trainer, settings["trainer"])
    check_strategy(settings["trainer"])
    built["lm"] = build_lm(cfg.model, ranks)
    fitting = ("lm", "task", "gates", "sparsity", "selection")
    check_parts(**{name: built[name] for name in fitting})
    return built


def _logger(settings: dict[str, Any], folder: Path, ranks: Ranks) -> Any:
    from headloc.reporting.loggers import RunLogger, open_logger

    if not ranks.first:
        return RunLogger(False)
    return open_logger(settings["logger"], folder, settings)


def _localize(
    parts: dict[str, Any],
    settings: dict[str, Any],
    logger: Any,
    console: Any,
    resume_from: Path | None,
) -> Localization:
    from headloc.localizer.run import localize

    trainer = dict(settings["trainer"])
    parts["callbacks"] += console.callbacks(trainer)
    return localize(
        parts.pop("lm"),
        parts.pop("task"),
        **parts,
        trainer={**trainer, "logger": logger.lightning, "default_root_dir": settings["output_dir"]},
        seed=settings["seed"],
        resume_from=resume_from,
        stages=console.stage,
    )


def _write(finished: Finished) -> None:
    """Write the results, the circuit last of them; then what can be made again."""
    from headloc.bank.export import write_path
    from headloc.commands.published import of_localization
    from headloc.reporting.pictures import save_pictures
    from headloc.reporting.report import write_report
    from headloc.reporting.tables import write_heads, write_outcomes

    result, folder, lm, yaml = finished.result, finished.folder, finished.lm, finished.yaml
    write_text(folder / "config.yaml", yaml)
    write_json(folder / "metrics.json", dict(result.metrics))
    write_heads(result, folder / "heads.csv")
    write_outcomes(result, folder / "outcomes.csv", lm)
    if result.path is not None:
        write_path(result.path, result.circuit, folder)
    for number, circuit in enumerate(result.replicates, start=1):
        circuit.save(folder / "replicates" / f"{number}")
    result.circuit.save(folder / "circuit")
    report, comparison = folder / "report.html", of_localization(result.circuit)
    finished.extras.attempt("pictures", lambda: save_pictures(result, folder))
    finished.extras.attempt(
        report.name, lambda: write_report(result, yaml, report, lm, comparison=comparison)
    )
