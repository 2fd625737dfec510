"""`headloc evaluate`: score a saved circuit on a model and a task, on fresh prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.commands.build import build, build_lm, build_settings, checked_seed, plain
from headloc.errors import CircuitError, HeadlocError
from headloc.files import usable_output_dir, write_json, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from headloc.circuit import Circuit
    from headloc.lm.frozen import FrozenLM
    from headloc.localizer.settings import DataSettings
    from headloc.objectives import Objective
    from headloc.objectives.prompts import Progress
    from headloc.reporting.console import Console
    from headloc.tasks import Split, TaskFamily


def run(cfg: DictConfig, output_dir: Path) -> dict[str, float]:
    """Score the circuit, print the figures and write metrics.json.

    Raises:
        HeadlocError: for a circuit that is broken or of another model.
    """
    from headloc.circuit import Circuit
    from headloc.evaluation.splits import judge_task, verdict_metrics
    from headloc.lm.keeping import PrefixKeeper
    from headloc.localizer.settings import DataSettings, VerdictSettings
    from headloc.reporting.console import Console

    folder = usable_output_dir(output_dir)
    settings = plain(cfg)
    seed = checked_seed(settings["seed"])
    circuit = Circuit.load(str(settings["circuit"]))
    data = build_settings("data", DataSettings, plain(cfg.data))
    verdict = build_settings("verdict", VerdictSettings, plain(cfg.verdict))
    console = Console()
    with console.stage("loading"):
        lm = build_lm(cfg.model) if cfg.get("model") else own_model(circuit)
        task = build("task", plain(cfg.task)) if cfg.get("task") else own_task(circuit)
        circuit.check_model(lm)
    lm.keeper = PrefixKeeper(data.cache)
    with console.stage("off-values") as progress:
        objective = own_objective(
            circuit, lm, task, seed=seed, prompts=data.mean_prompts, progress=progress
        )
    verdicts = judge_task(
        objective,
        lm,
        task,
        circuit.chosen(lm),
        seed=seed,
        test_prompts=data.test_prompts,
        held_out_prompts=data.held_out_prompts,
        random_sets=verdict.random_sets,
        stages=console.stage,
    )
    metrics = {
        **verdict_metrics(verdicts),
        "heads/count": len(circuit.heads),
        "heads/total": lm.layout.total,
    }
    if circuit.feed_forward is not None:
        metrics |= {
            "mlps/count": len(circuit.feed_forward.kept),
            "mlps/total": len(circuit.feed_forward.layers),
        }
    if cfg.get("intervention"):
        metrics |= _intervene(plain(cfg.intervention), circuit, lm, task, data, seed, console)
    if metrics["accuracy/full"] == 0:
        raise HeadlocError(f"{lm.source.name!r} answers none of the prompts of this task.")
    _write_config(cfg, folder)
    write_json(folder / "metrics.json", metrics)
    console.accuracies(metrics)
    for line in _intervened_lines(metrics):
        console.say(line)
    console.say(f"metrics  {folder / 'metrics.json'}")
    return metrics


def _intervene(
    options: dict[str, Any],
    circuit: Circuit,
    lm: FrozenLM,
    task: TaskFamily,
    data: DataSettings,
    seed: int,
    console: Console,
) -> dict[str, float]:
    """Return the figures of an intervention on the circuit's heads, on both kinds of tasks."""
    from headloc.evaluation.intervened import judge_intervention

    intervention = build("intervention", options)
    metrics: dict[str, float] = {}
    splits: list[tuple[Split, int, str, str]] = [("train", data.test_prompts, "", "seen")]
    if task.held_out:
        splits.append(("held_out", data.held_out_prompts, "held_out/", "held-out"))
    for split, prompts, prefix, kind in splits:
        with console.stage(f"{intervention.name} on {kind} tasks") as progress:
            found = judge_intervention(
                intervention, lm, task, circuit.heads, seed=seed, split=split, prompts=prompts,
                progress=progress,
            )  # fmt: skip
        metrics |= found.to_metrics(prefix)
    return metrics


def _intervened_lines(metrics: dict[str, float]) -> list[str]:
    """Return what an intervention did, in words; nothing without one."""
    lines = []
    for prefix, tasks in (("", "tasks trained on"), ("held_out/", "held-out tasks")):
        for measure, what in (("accuracy", "accuracy"),
                              ("accuracy_within_labels", "accuracy within the labels"),
                              ("log_probability", "log-probability")):  # fmt: skip
            key = f"{prefix}intervention/{measure}"
            if f"{key}/before" not in metrics:
                continue
            told = [f"{_with_interval(metrics, f'{key}/{name}')} {name}"
                    for name in ("before", "after")]  # fmt: skip
            if f"{key}/random" in metrics:
                told.append(f"{_with_interval(metrics, f'{key}/random')} on random heads")
            lines.append(f"intervention, {what}, {tasks}: {', '.join(told)}")
    return lines


def _with_interval(metrics: dict[str, float], key: str) -> str:
    """Return a figure with its interval; near 0 it keeps two digits that say something."""
    value, low, high = (metrics[f"{key}{end}"] for end in ("", "/low", "/high"))
    small = value != 0 and abs(value) < 0.01
    told = [f"{figure:.2g}" if small else f"{figure:.3f}" for figure in (value, low, high)]
    return f"{told[0]} [{told[1]}, {told[2]}]"


def own_model(circuit: Circuit) -> FrozenLM:
    """Load the model that a circuit names; the bundled model wherever it is installed."""
    from headloc.bundled import BUNDLED_NAME, load_bundled
    from headloc.lm.loading import load_lm

    name = str(circuit.model["name"])
    if name == BUNDLED_NAME:
        return load_bundled()
    return load_lm(name, revision=circuit.model.get("revision"))


def own_task(circuit: Circuit) -> TaskFamily:
    """Rebuild the task family that a circuit was found on."""
    from headloc.tasks import rebuild_task

    if not circuit.task:
        raise CircuitError(
            "The circuit names no task, as it was imported from another tool. Give one: task=add_k."
        )
    return rebuild_task(dict(circuit.task))


def own_objective(
    circuit: Circuit,
    lm: FrozenLM,
    task: TaskFamily,
    *,
    seed: int,
    prompts: int,
    progress: Progress | None = None,
) -> Objective:
    """Rebuild the objective of a circuit, with the off-values or means that were saved with it.

    Means belong to their model, and task means to their task: for another one they are estimated
    anew.
    """
    from headloc.objectives import rebuild_objective

    try:
        objective = rebuild_objective(circuit.objective)
    except HeadlocError as error:
        raise CircuitError(f"The circuit's objective cannot be rebuilt: {error}") from None
    same_model = circuit.model.get("fingerprint") == lm.source.fingerprint
    same_task = task.describe() == dict(circuit.task)
    if circuit.tensors and same_model and (same_task or not objective.bound_to_task):
        objective.load_tensors(circuit.tensors, lm, task)
    else:
        objective.prepare(lm, task, seed=seed, prompts=prompts, progress=progress)
    return objective


def _write_config(cfg: DictConfig, folder: Path) -> None:
    from omegaconf import OmegaConf, open_dict

    with open_dict(cfg):
        cfg.output_dir = str(folder)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
