"""Interventions by name in `headloc evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from headloc.cli import config_dir
from headloc.commands.build import build
from headloc.evaluation.intervened import judge_intervention
from headloc.heads import HeadId
from headloc.interventions import PositionFree, ValueBoost
from headloc.tasks import Labels
from tests.analysis.label_subjects import label_lm
from tests.analysis.subjects import bundled_lm, circuit_of
from tests.commands.conftest import headloc  # noqa: F401
from tests.commands.runs import Headloc

NAMES = ("position_free", "value_boost")


@pytest.mark.parametrize("name", NAMES)
def test_every_intervention_is_built_from_its_own_file(name: str) -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("evaluate", ["circuit=somewhere", f"intervention={name}"])
    options = OmegaConf.to_container(cfg.intervention, resolve=True)
    assert isinstance(options, dict)
    assert build("intervention", options).name == name
    assert {p.stem for p in (config_dir() / "intervention").glob("*.yaml")} == set(NAMES)


def test_a_boost_of_nothing_changes_nothing_and_position_changes_something() -> None:
    lm, task = label_lm("llama"), Labels(shots=3)
    heads = (HeadId(0, 1), HeadId(1, 2))
    same = judge_intervention(ValueBoost(0.0), lm, task, heads, seed=1, split="train", prompts=6)
    for measure, before_N in same.before.items():
        assert np.array_equal(same.after[measure], before_N)
        assert np.array_equal(same.random[measure], before_N)
    other = judge_intervention(PositionFree(), lm, task, heads, seed=1, split="train", prompts=6)
    assert np.array_equal(other.before["log_probability"], same.before["log_probability"])
    assert np.abs(other.after["log_probability"] - other.before["log_probability"]).min() > 1e-9
    metrics = other.to_metrics("held_out/")
    for measure in ("accuracy", "accuracy_within_labels", "log_probability"):
        for name in ("before", "after", "change", "random", "random_change"):
            assert f"held_out/intervention/{measure}/{name}/low" in metrics


def test_the_command_reports_both_accuracies(
    headloc: Headloc,  # noqa: F811
    tmp_path: Path,
) -> None:
    lm, task = bundled_lm(), Labels(shots=4, max_tasks=4)
    circuit = circuit_of(lm, task, (HeadId(0, 1),)).save(tmp_path / "circuit")
    found = headloc("evaluate", f"circuit={circuit}", "intervention=position_free",
                    "data.test_prompts=4", "data.held_out_prompts=2", "data.mean_prompts=2",
                    "verdict.random_sets=1", "output_dir=out")  # fmt: skip
    assert found.status == 0, found.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for prefix in ("", "held_out/"):
        full = metrics[f"{prefix}intervention/accuracy/before"]
        assert full == metrics[f"{prefix}accuracy/full"]
        assert metrics[f"{prefix}intervention/accuracy_within_labels/before"] >= full
    assert "accuracy within the labels, held-out tasks" in found.out


def test_figures_of_an_intervention_are_printed_with_intervals_and_near_zero_legible() -> None:
    from headloc.commands.evaluate import _intervened_lines

    metrics: dict[str, float] = {}
    for key, figures in {
        "accuracy/before": (1.0, 1.0, 1.0),
        "accuracy/after": (0.561, 0.519, 0.604),
        "log_probability/before": (-3.14e-05, -4e-05, -2.5e-05),
        "log_probability/after": (-5.6271, -6.1, -5.2),
        "log_probability/random": (0.0, 0.0, 0.0),
    }.items():
        for end, figure in zip(("", "/low", "/high"), figures, strict=True):
            metrics[f"intervention/{key}{end}"] = figure
    assert _intervened_lines(metrics) == [
        "intervention, accuracy, tasks trained on: 1.000 [1.000, 1.000] before, "
        "0.561 [0.519, 0.604] after",
        "intervention, log-probability, tasks trained on: -3.1e-05 [-4e-05, -2.5e-05] before, "
        "-5.627 [-6.100, -5.200] after, 0.000 [0.000, 0.000] on random heads",
    ]
