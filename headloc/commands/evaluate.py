"""`headloc evaluate`: score a saved circuit on a model and a task, on fresh prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.commands.build import build, build_lm, build_settings, checked_seed, plain
from headloc.errors import CircuitError, HeadlocError, suggest
from headloc.files import usable_output_dir, write_json, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from headloc.circuit import Circuit
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives import Objective
    from headloc.tasks import Split, TaskFamily


def run(cfg: DictConfig, output_dir: Path) -> dict[str, float]:
    """Score the circuit, print the figures and write metrics.json.

    Raises:
        HeadlocError: for a circuit that is broken or of another model.
    """
    from headloc.circuit import Circuit
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
    objective = own_objective(circuit, lm, task, seed=seed, prompts=data.mean_prompts)
    verdicts = _judge(circuit, lm, task, objective, data, verdict, seed, console)
    metrics = verdicts["seen"].to_metrics()
    if "held_out" in verdicts:
        metrics |= verdicts["held_out"].to_metrics("held_out/")
    metrics |= {"heads/count": len(circuit.heads), "heads/total": lm.layout.total}
    _write_config(cfg, folder)
    write_json(folder / "metrics.json", metrics)
    console.accuracies(metrics)
    console.say(f"metrics  {folder / 'metrics.json'}")
    return metrics


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

    return rebuild_task(dict(circuit.task))


def own_objective(
    circuit: Circuit, lm: FrozenLM, task: TaskFamily, *, seed: int, prompts: int
) -> Objective:
    """Rebuild the objective of a circuit, with the off-values that were saved with it."""
    from headloc.objectives import InPlace

    known: Mapping[str, type[Objective]] = {InPlace.name: InPlace}
    settings: dict[str, Any] = dict(circuit.objective)
    name = str(settings.pop("name", ""))
    if name not in known:
        raise CircuitError(f"The circuit's objective {name!r} is unknown. {suggest(name, known)}")
    try:
        objective = known[name](**settings)
    except TypeError as error:
        raise CircuitError(
            f"The circuit's objective has settings of another headloc: {error}"
        ) from None
    if circuit.tensors:
        objective.load_tensors(circuit.tensors, lm, task)
    else:
        objective.prepare(lm, task, seed=seed, prompts=prompts, progress=None)
    return objective


def _judge(
    circuit: Circuit,
    lm: FrozenLM,
    task: TaskFamily,
    objective: Objective,
    data: Any,
    verdict: Any,
    seed: int,
    console: Any,
) -> dict[str, Any]:
    from headloc.evaluation.verdict import judge
    from headloc.randomness import stream

    splits: dict[str, tuple[Split, int]] = {"seen": ("train", data.test_prompts)}
    if task.held_out:
        splits["held_out"] = ("held_out", data.held_out_prompts)
    verdicts = {}
    for name, (split, size) in splits.items():
        with console.stage(f"scoring {name.replace('_', '-')} tasks") as progress:
            examples = task.draw(size, stream(seed, "test", split), split=split, items="score")
            prompts = objective.prompt_set(lm, task, examples, seed=seed, use=f"test-{split}")
            verdicts[name] = judge(
                objective,
                lm,
                prompts,
                lm.layout.indices(circuit.heads),
                seed=seed,
                random_sets=verdict.random_sets,
                progress=progress,
            )
    if verdicts["seen"].accuracy("full").value == 0:
        raise HeadlocError(f"{lm.source.name!r} answers none of the prompts of this task.")
    return verdicts


def _write_config(cfg: DictConfig, folder: Path) -> None:
    from omegaconf import OmegaConf, open_dict

    with open_dict(cfg):
        cfg.output_dir = str(folder)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
