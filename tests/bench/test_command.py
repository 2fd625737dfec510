"""`headloc bench` on tiny shapes: all keys are there, and their inputs make sense."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import headloc as headloc
from tests.commands.runs import Headloc

SMALL = (
    "shape=llama_tiny",
    "repetitions=2",
    "scaling_repetitions=1",
    "turn_seconds=0",
    "shots=2",
    "prompts=16",
    "batch_size=8",
    "bank=4",
)
PATCHING = (
    "patching.aie_prompts=1",
    "patching.scan_prompts=2",
    "patching.scan_heads=2",
    "patching.doses=2",
    "patching.subset_prompts=3",
    "patching.pool=2",
    "patching.control_prompts=3",
    "patching.control_heads=2",
    "patching.random_sets=1",
    "patching.mean_prompts=2",
)
LOCALIZATION = (
    "localization.prompts_per_task=2",
    "localization.train_prompts=32",
    "localization.selection_prompts=16",
    "localization.test_prompts=16",
    "localization.held_out_prompts=16",
    "localization.batch_size=16",
    "localization.epochs=2",
    "localization.random_sets=1",
    "localization.weights=[0.01,0.1]",
    # As on a GPU.
    "dtype=bfloat16",
)


def bench(headloc: Headloc, folder: Path, *arguments: str) -> dict[str, Any]:
    result = headloc("bench", *SMALL, f"output_dir={folder}", *arguments)
    assert result.status == 0, result.err
    content = json.loads((folder / "bench.json").read_text())
    for key in content:
        if key.startswith("ratio/"):
            assert key in result.out
    assert isinstance(content, dict)
    return content


def test_every_ratio_stands_in_bench_json_with_its_inputs(headloc: Headloc, tmp_path: Path) -> None:
    parts = "parts=[prefix_cache,gate_overhead,bank,patching]"
    content = bench(headloc, tmp_path, parts, "bank=16", *PATCHING)
    assert {key for key in content if key.startswith("ratio/")} == {
        "ratio/prefix_cache",
        "ratio/gate_overhead",
        "ratio/bank16_time",
        "ratio/bank16_memory",
        "ratio/patching",
    }
    assert set(content["inputs"]) == {*content["further"], *(k for k in content if "/" in k)}
    for name in ("prefix_cache", "gate_overhead", "bank16_time", "bank16_memory", "patching"):
        value, inputs = content[f"ratio/{name}"], content["inputs"][f"ratio/{name}"]
        assert value > 0
        assert math.isfinite(value)
        assert inputs["value"] == value
        assert inputs["prompt_tokens"] == 11
        assert (inputs["prompts"], inputs["batch_size"], inputs["heads"]) == (16, 8, 8)
    for name in ("prefix_cache", "gate_overhead", "bank16_time"):
        inputs = content["inputs"][f"ratio/{name}"]
        assert inputs["low"] <= inputs["value"] <= inputs["high"]
        for arm in inputs["arms"].values():
            assert arm["turns"] == len(arm["seconds_by_turn"]) == 2
            assert arm["seconds_smallest"] <= arm["seconds"] <= arm["seconds_largest"]
    losses = content["inputs"]["ratio/prefix_cache"]["losses_of_first_step"]
    assert losses["prefix_cache"] == pytest.approx(losses["full_passes"], rel=1e-5)
    assert content["inputs"]["ratio/prefix_cache"]["gradient_difference"] < 1e-4
    assert content["inputs"]["ratio/bank16_time"]["gradient_difference"] < 1e-4
    tokens = content["inputs"]["ratio/bank16_time"]["tokens_of_a_step"]
    assert tokens["bank"] == 16 * tokens["one"] == 16 * 8
    memory = content["inputs"]["ratio/bank16_memory"]
    assert memory["branches_of_one_row"] is True
    # 10 prefix columns and one per gate set: a copy per gate set would make it 16.
    assert memory["ratio_of_cache_bytes"] == pytest.approx(26 / 11)
    smallest = content["inputs"]["ratio/patching"]["smallest_of"]
    assert content["ratio/patching"] == min(smallest.values())
    run = content["run"]
    assert run["model"]["name"] == "random/llama_tiny"
    assert (run["threads"], run["dtype"], run["device"], run["seed"]) == (1, "float32", "cpu", 0)
    assert {"torch", "transformers", "headloc"} <= run["versions"].keys()


def test_scaling_measures_every_axis(headloc: Headloc, tmp_path: Path) -> None:
    content = bench(headloc, tmp_path, "parts=[scaling]")
    with (tmp_path / "scaling.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["scaling"])
    by_axis: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_axis.setdefault(row["axis"], []).append(row)
    assert set(by_axis) == {"heads", "layers", "shots", "prompts", "bank"}
    for axis, own in by_axis.items():
        assert float(own[0]["time_to_first"]) == float(own[0]["memory_to_first"]) == 1.0
        assert all(float(row["seconds"]) > 0 for row in own)
        grown = [float(row["bytes"]) for row in own]
        assert grown == sorted(grown), axis
    # Each axis moves alone.
    assert {row["prompt_tokens"] for row in by_axis["bank"]} == {"11"}
    assert [int(row["heads"]) for row in by_axis["heads"]] == [16, 32, 64, 128]
    assert [int(row["prompt_tokens"]) for row in by_axis["shots"]] == [7, 15, 23, 43]


def test_a_whole_localization_is_timed_by_stage(headloc: Headloc, tmp_path: Path) -> None:
    content = bench(headloc, tmp_path, "parts=[localization]", *LOCALIZATION)
    found = content["localization"]
    assert set(found) == {"add_k", "path"}
    for name, gate_sets in (("add_k", 1), ("path", 4)):
        own = found[name]
        assert own["gate_sets"] == gate_sets
        assert own["steps"] == 4
        stages = own["seconds_by_stage"]
        assert {"mean head outputs", "prompts and prefixes", "training"} <= stages.keys()
        assert sum(stages.values()) <= own["seconds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parts=[speed]"], "parts names 'speed'"),
        (["parts=[]"], "parts is empty"),
        (["shape=llama_513"], "llama_512"),
        (["dtype=float33"], "float32"),
        (["batch_size=32"], "Raise prompts"),
        (["repetitions=0"], "repetitions=0"),
        (["shape=null", "parts=[localization]"], "random model"),
        (["patching.pools=3"], "patching.pool"),
        (["localization.epochs=0"], "localization.epochs=0"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_any_work(
    headloc: Headloc, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = headloc("bench", *SMALL, f"output_dir={tmp_path}", *arguments)
    assert result.status == 2
    assert message in result.err
    assert not (tmp_path / "bench.json").exists()
