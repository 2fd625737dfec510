"""Short runs of every shipped experiment and choice, and what they leave behind."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from headloc.circuit import Circuit
from headloc.cli import config_dir
from tests.commands.runs import SMALL, Headloc, contents, quick

EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
FILES = (
    "config.yaml",
    "metrics.json",
    "report.html",
    "circuit/circuit.json",
    "circuit/gates.safetensors",
    "circuit/README.md",
    "checkpoints/gates.ckpt",
)
KEYS = ("accuracy/full", "accuracy/circuit", "accuracy/off")


def assert_complete(folder: Path) -> dict[str, float]:
    """Check the files and figures that scripts rely on, and return the figures."""
    for name in FILES:
        assert (folder / name).stat().st_size > 0, name
    metrics = json.loads((folder / "metrics.json").read_text())
    for key in (*KEYS, *(f"held_out/{key}" for key in KEYS)):
        assert metrics[f"{key}/low"] <= metrics[key] <= metrics[f"{key}/high"]
        assert metrics[f"{key}/n"] == 24
    assert all(math.isfinite(value) for value in metrics.values())
    circuit = Circuit.load(folder / "circuit")
    assert metrics["heads/count"] == len(circuit.heads)
    assert metrics["heads/total"] == 48
    assert "${" not in (folder / "config.yaml").read_text()
    torch.load(folder / "checkpoints" / "gates.ckpt", weights_only=True)
    return metrics


def test_a_run_leaves_what_is_promised(finished: Path) -> None:
    metrics = assert_complete(finished)
    assert metrics["accuracy/full"] > 0.5
    assert metrics["accuracy/off"] < 0.3
    assert metrics["faithfulness"] > 0.5
    assert metrics["time/seconds"] > 0
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["output_dir"] == str(finished)
    assert config["data"]["test_prompts"] == 24
    assert (finished / "replicates" / "1" / "circuit.json").is_file()
    assert not (finished / ".hydra").exists()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment: str, headloc: Headloc, tmp_path: Path) -> None:
    result = headloc(*quick(tmp_path / "out", f"experiment={experiment}"))
    assert result.status == 0, result.err
    assert_complete(tmp_path / "out")


@pytest.mark.parametrize(
    "choices",
    [
        ("gates=hard_concrete", "objective.off_value=resample", "selection=kept"),
        ("gates=hard_concrete", "objective.off_value=zero", "selection=mass", "logger=csv"),
        ("gates=l1", "sparsity=target", "sparsity.heads=5", "objective.loss=kl"),
        ("gates=top_k", "selection=top_n", "task.shots=3"),
        ("task=pairs", "task.path=[plus_seven.json,plus_nine.json]", "task.held_out=[plus_nine]"),
    ],
    ids=lambda choices: " ".join(choices),
)  # fmt: skip
def test_choices_run_together(choices: tuple[str, ...], headloc: Headloc, tmp_path: Path) -> None:
    for name, offset in (("plus_seven", 7), ("plus_nine", 9)):
        items = [{"input": str(x), "output": str(x + offset)} for x in range(1, 60)]
        (tmp_path / f"{name}.json").write_text(json.dumps(items))
    more = ("trainer.max_epochs=1", "verdict.replicates=0", "data.train_prompts=16")
    result = headloc(*quick(tmp_path / "out", *more, *choices))
    assert result.status == 0, result.err
    metrics = assert_complete(tmp_path / "out")
    if "sparsity.heads=5" in choices:
        assert metrics["heads/count"] == metrics["heads/requested"] == 5


def test_a_run_is_repeated_bit_for_bit_and_says_where_it_is(
    headloc: Headloc, finished: Path, tmp_path: Path
) -> None:
    result = headloc(*quick(tmp_path / "again", "verdict.replicates=0"))
    assert str(tmp_path / "again" / "circuit") in result.out
    assert str(tmp_path / "again" / "report.html") in result.out
    assert "Traceback" not in result.err
    assert "arning" not in result.err
    name = "circuit/gates.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes()


def test_a_sweep_has_a_numbered_folder_for_each_job(headloc: Headloc, tmp_path: Path) -> None:
    more = (
        "trainer.max_epochs=1",
        "verdict.replicates=0",
        "data.train_prompts=16",
        "--multirun",
        "seed=0,1",
    )
    result = headloc(*quick(tmp_path / "sweep", *more))
    assert result.status == 0, result.err
    seeds = [assert_complete(tmp_path / "sweep" / str(n))["seed"] for n in (0, 1)]
    assert seeds == [0, 1]
    gates = [Circuit.load(tmp_path / "sweep" / str(n) / "circuit").gates for n in (0, 1)]
    assert not torch.equal(*gates)


def test_a_finished_run_can_be_resumed_without_changing_its_gates(
    headloc: Headloc, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    result = headloc(*quick(tmp_path / "out", "resume=true"))
    assert result.status == 0, result.err
    name = "circuit/gates.safetensors"
    assert contents(tmp_path / "out")[name] == contents(finished)[name]


def test_evaluate_with_the_same_seed_gives_the_figures_of_the_run(
    headloc: Headloc, finished: Path, tmp_path: Path
) -> None:
    arguments = [f"circuit={finished / 'circuit'}", *SMALL, f"output_dir={tmp_path / 'out'}"]
    assert headloc("evaluate", *arguments, "seed=0").status == 0
    same = json.loads((tmp_path / "out" / "metrics.json").read_text())
    run = json.loads((finished / "metrics.json").read_text())
    assert "faithfulness" in same
    for key, value in same.items():
        assert run[key] == pytest.approx(value, abs=1e-5), key
    assert headloc("evaluate", *arguments).status == 0
    fresh = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert fresh["log_probability/full"] != same["log_probability/full"]
    assert fresh["accuracy/full"] == pytest.approx(same["accuracy/full"], abs=0.35)


def test_evaluate_on_another_task(headloc: Headloc, finished: Path, tmp_path: Path) -> None:
    arguments = [f"circuit={finished / 'circuit'}", *SMALL, f"output_dir={tmp_path / 'out'}"]
    result = headloc("evaluate", *arguments, "task=add_k", "task.shots=2", "model=bundled")
    assert result.status == 0, result.err
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["task"]["shots"] == 2
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["accuracy/full"] > 0


def test_show_prints_the_heads_and_where_they_are_from(headloc: Headloc, finished: Path) -> None:
    circuit = Circuit.load(finished / "circuit")
    for arguments in ([finished / "circuit"], [f"circuit={finished / 'circuit'}"]):
        result = headloc("circuit", "show", *arguments)
        assert result.status == 0
        for head in circuit.heads:
            assert str(head) in result.out
        assert "headloc/bundled" in result.out
        assert "add_k" in result.out


def test_diff_prints_overlaps_of_every_pair(headloc: Headloc, finished: Path) -> None:
    mine, other = finished / "circuit", finished / "replicates" / "1"
    a, b = (set(Circuit.load(path).heads) for path in (mine, other))
    result = headloc("circuit", "diff", mine, other)
    assert result.status == 0
    assert f"Jaccard index     {len(a & b) / len(a | b):.3f}" in result.out
    assert "rank correlation  1.000" in headloc("circuit", "diff", mine, mine).out
    three = headloc("circuit", "diff", mine, other, mine).out
    assert three.count("Jaccard index   ") == 3
    assert "all 3 circuits" in three


def test_exports_hold_the_heads(headloc: Headloc, finished: Path, tmp_path: Path) -> None:
    heads = [[head.layer, head.head] for head in Circuit.load(finished / "circuit").heads]
    texts = {}
    for kind in ("heads", "csv", "mib", "headkv"):
        file = tmp_path / "exports" / f"{kind}.txt"
        result = headloc(
            "circuit", "export", finished / "circuit", f"format={kind}", f"output={file}"
        )
        assert (result.status, result.out) == (0, f"{file}\n")
        texts[kind] = file.read_text()
    assert json.loads(texts["heads"]) == heads
    rows = [line.split(",") for line in texts["csv"].splitlines()[1:]]
    assert [[int(row[0]), int(row[1])] for row in rows if row[4] == "1"] == heads
    nodes = json.loads(texts["mib"])["nodes"]
    assert all(nodes[f"a{layer}.h{head}"]["in_graph"] for layer, head in heads)
    assert len(json.loads(texts["headkv"])) == 48
