"""Every shipped configuration composes, resolves and can be built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from headloc.cli import config_dir
from headloc.commands.build import build, build_settings, check_options
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.settings import DataSettings, VerdictSettings
from tests.commands.runs import Headloc

# Of hydra/ only the launchers are ours, sweep/ is read by `wandb sweep` (test_sweeps.py), and
# analysis/ and intervention/ belong to other commands (tests/analysis, tests/interventions).
GROUPS = sorted(
    path.name
    for path in config_dir().iterdir()
    if path.is_dir() and path.name not in ("hydra", "sweep", "analysis", "intervention")
)
CHOICES = [
    (group, path.stem) for group in GROUPS for path in sorted((config_dir() / group).glob("*.yaml"))
]
BUILT = ("task", "objective", "gates", "sparsity", "selection")


@pytest.fixture
def composing() -> Iterator[None]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


def resolved(config: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=str)
def test_every_choice_of_every_group_composes_and_is_built(
    group: str, choice: str, tmp_path: Path
) -> None:
    overrides = [f"{group}={choice}"]
    if (group, choice) in (("model", "local"), ("model", "hub")):
        overrides.append("model.path=somewhere")
    if (group, choice) == ("task", "pairs"):
        overrides.append("task.path=bundled")
    if (group, choice) == ("task", "prompts"):
        entries = [{"prompt": f"{i} + 1 =", "answer": f" {i + 1}"} for i in range(4)]
        (tmp_path / "sums.json").write_text(json.dumps(entries))
        overrides.append(f"task.path={tmp_path}/sums.json")
    settings = resolved(compose("localize", overrides))
    for name in BUILT:
        target = settings[name]["_target_"]
        assert type(build(name, settings[name])).__name__ == target.rpartition(".")[2]
    build_settings("data", DataSettings, settings["data"])
    build_settings("optimizer", OptimizerSettings, settings["optimizer"])
    build_settings("verdict", VerdictSettings, settings["verdict"])
    for name, options in settings["callbacks"].items():
        build(f"callbacks.{name}", options)
    from lightning import Trainer

    check_options("trainer", Trainer, settings["trainer"])


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize(
    "command", ["localize", "evaluate", "refine", "analyze", "layers", "bench", "bundled_train"]
)
def test_every_command_composes(command: str) -> None:
    overrides = ["circuit=somewhere"] if command in ("evaluate", "refine", "analyze") else []
    assert "output_dir" in resolved(compose(command, overrides))


def test_every_choice_is_named_beside_its_group() -> None:
    text = (config_dir() / "localize.yaml").read_text()
    for group, choice in CHOICES:
        line = next(line for line in text.splitlines() if line.strip().startswith(f"- {group}:"))
        assert choice in line or "conf/experiment" in line


def test_cfg_job_prints_the_composed_configuration(headloc: Headloc) -> None:
    result = headloc("localize", "--cfg", "job", "gates=l1", "seed=7")
    assert result.status == 0
    shown = yaml.safe_load(result.out)
    assert shown["seed"] == 7
    assert shown["gates"]["_target_"] == "headloc.gates.L1Gates"


def test_a_user_s_own_experiment_is_found(headloc: Headloc, tmp_path: Path) -> None:
    own = tmp_path / "mine" / "experiment"
    own.mkdir(parents=True)
    (own / "three_shots.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /gates: top_k\n\ntask:\n  shots: 3\n"
    )
    arguments = ("--config-dir", "mine", "experiment=three_shots", "--cfg", "job")
    shown = yaml.safe_load(headloc("localize", *arguments).out)
    assert shown["task"]["shots"] == 3
    assert shown["gates"]["_target_"] == "headloc.gates.TopKGates"
