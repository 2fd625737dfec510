"""Sweeps: by Hydra's launchers in other processes, and by an agent of Weights & Biases."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from headloc.circuit import Circuit
from headloc.cli import config_dir
from tests.commands.runs import quick

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((config_dir() / "sweep").glob("*.yaml"))
SHORT = ("trainer.max_epochs=1", "verdict.replicates=0", "data.train_prompts=16")


def sweep(launcher: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = quick(folder, *SHORT, "--multirun", f"hydra/launcher={launcher}", *more)
    return subprocess.run(
        [sys.executable, "-m", "headloc", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "module", "more"),
    [
        ("joblib", "hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=1"]),
        ("submitit_local", "hydra_plugins.hydra_submitit_launcher", []),
    ],
)
def test_a_launcher_runs_jobs_and_tells_of_the_one_that_fails(
    launcher: str, module: str, more: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(module)
    done = sweep(launcher, tmp_path, *more, "sparsity=target", "sparsity.heads=99,5")
    assert done.returncode == 2
    # A launcher's own processes bring back the error alone; here jobs are known as well.
    assert "sparsity.heads=99 is more than the 48 heads" in done.stderr.strip().splitlines()[-1]
    assert len([line for line in done.stderr.splitlines() if line.startswith("headloc: ")]) == 1
    assert "Traceback" not in done.stderr
    # The other job has run, in its own numbered folder.
    assert len(Circuit.load(tmp_path / "1" / "circuit").heads) == 5
    assert not (tmp_path / "0" / "circuit").exists()


def test_the_configuration_of_slurm_jobs_composes() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("localize", ["hydra/launcher=slurm"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    # Jobs of a sweep use one device each.
    assert (launcher.gpus_per_node, launcher.tasks_per_node, launcher.nodes) == (1, 1, 1)


def drawn(parameter: dict[str, Any], rng: random.Random) -> Any:
    """A value as the W&B server may choose it."""
    if "values" in parameter:
        return rng.choice(parameter["values"])
    if "value" in parameter:
        return parameter["value"]
    assert parameter["distribution"] in ("uniform", "log_uniform_values")
    assert 0 < parameter["min"] < parameter["max"]
    return rng.uniform(parameter["min"], parameter["max"])


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_an_agent_of_a_shipped_sweep_gives_a_command_that_composes(path: Path) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["method"] in ("grid", "random", "bayes")
    assert content["metric"]["goal"] in ("minimize", "maximize")
    assert content["program"] == "headloc"
    if content["method"] == "grid":
        assert all("values" in one or "value" in one for one in content["parameters"].values())
    # What the agent does with the file: substitute the arguments, and run.
    rng = random.Random(0)
    chosen = {name: {"value": drawn(one, rng)} for name, one in content["parameters"].items()}
    arguments = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    command: list[str] = []
    for part in create_sweep_command(content["command"]):
        command += arguments if part == "${args_no_hyphens}" else [str(part)]
    assert command[:2] == ["headloc", "localize"]
    assert not [part for part in command if re.search(r"\$\{", part)]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("localize", command[2:])
    for name, value in chosen.items():
        node: Any = cfg
        for key in name.split("."):
            node = node[key]
        assert node == pytest.approx(value["value"])
    assert cfg.logger.kind == "wandb"


def test_the_metric_of_a_sweep_is_one_that_a_run_logs() -> None:
    source = (ROOT / "headloc/localizer/module.py").read_text(encoding="utf-8")
    for path in SWEEPS:
        name = yaml.safe_load(path.read_text(encoding="utf-8"))["metric"]["name"]
        assert f'self.log("{name}"' in source
