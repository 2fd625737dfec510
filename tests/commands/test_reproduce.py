"""The paper experiments: their settings, and `headloc reproduce`."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from headloc.circuit import Circuit
from headloc.cli import config_dir
from headloc.commands.build import build, build_settings
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.references import reference_names
from tests.commands.runs import Headloc, contents

NAMES = sorted(
    path.relative_to(config_dir() / "experiment").with_suffix("").as_posix()
    for folder in ("hu2025", "yu2024")
    for path in (config_dir() / "experiment" / folder).glob("*.yaml")
)
BUNDLED = [name for name in NAMES if "bundled" in name]
MODELS = {
    "hu2025/llama3_8b_add_k": "meta-llama/Meta-Llama-3-8B-Instruct",
    "hu2025/llama3_8b_pairs": "meta-llama/Meta-Llama-3-8B-Instruct",
    "hu2025/phi4_add_k": "microsoft/phi-4",
    "hu2025/qwen25_7b_add_k": "Qwen/Qwen2.5-7B",
    "yu2024/llama_7b_labels": "huggyllama/llama-7b",
    "yu2024/gpt2_large_facts": "openai-community/gpt2-large",
}

REFINE = (
    "objective.prompts_per_task=10",
    "refine.doses=3",
    "refine.scan_prompts=25",
    "refine.prompts=25",
    "refine.aie_prompts=1",
    "refine.mean_prompts=20",
    "refine.random_sets=2",
)
"""Options of a refinement of a second or two."""


@pytest.fixture
def composing() -> Iterator[None]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


def composed(name: str) -> dict[str, Any]:
    path = {"hu2025/llama3_8b_pairs": "bundled", "yu2024/llama_7b_labels": "null"}.get(name)
    given = [f"task.path={path}"] if path else []
    config = compose("localize", [f"experiment={name}", *given])
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def test_every_reference_has_an_experiment_and_the_reverse() -> None:
    assert sorted(reference_names()) == NAMES
    assert sorted([*MODELS, *BUNDLED]) == NAMES


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize("name", NAMES)
def test_every_paper_experiment_composes_and_is_built(name: str) -> None:
    settings = composed(name)
    for group in ("task", "objective", "gates", "sparsity", "selection"):
        build(group, settings[group])
    build_settings("data", DataSettings, settings["data"])
    build_settings("optimizer", OptimizerSettings, settings["optimizer"])
    build_settings("verdict", VerdictSettings, settings["verdict"])
    assert settings["model"].get("path") == MODELS.get(name)
    assert settings["model"]["source"] == ("hub" if name in MODELS else "bundled")


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hu2025")])
def test_the_settings_of_hu_2025_are_those_of_the_paper(name: str) -> None:
    settings = composed(name)
    objective = build("objective", settings["objective"])
    assert objective.describe() == {
        "name": "function_vector",
        "off_value": "zero",
        "relative_to": "none",
        "prompts_per_task": 100,
        "layer": None,
        "site": "attention",
    }
    assert settings["gates"]["_target_"] == "headloc.gates.L1Gates"
    assert (settings["gates"]["init_low"], settings["gates"]["init_high"]) == (0.0, 1.0)
    assert settings["gates"]["double"] is False
    assert settings["sparsity"]["_target_"] == "headloc.gates.PenaltySparsity"
    assert settings["sparsity"]["weight"] == 0.05
    assert settings["optimizer"] == {"lr": 0.01, "beta1": 0.9, "beta2": 0.98, "final_lr": 1.0}
    data = settings["data"]
    assert (data["train_prompts"], data["batch_size"]) == (2048, 128)
    assert (data["test_prompts"], data["held_out_prompts"]) == (512, 512)
    # 50 epochs of 16 batches are the paper's 800 steps.
    assert settings["trainer"]["max_epochs"] * data["train_prompts"] // data["batch_size"] == 800
    assert settings["seed"] == 42
    assert settings["selection"]["_target_"].endswith(".Elbow")
    assert settings["verdict"]["average_epochs"] == 3
    if name in MODELS:
        assert settings["model"]["dtype"] == "bfloat16"
    if "add_k" in name:
        task = build("task", settings["task"])
        assert len(task.train) == 25
        assert task.held_out == tuple(f"add_{k}" for k in (2, 16, 20, 21, 27))
        assert (task.shots, task.x_min, task.x_max) == (5, 1, 100)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every load of the bundled model."""
    import headloc.bundled as module

    seen: list[dict[str, Any]] = []
    load = module.load_bundled

    def counting(**options: Any) -> Any:
        seen.append(options)
        return load(**options)

    monkeypatch.setattr(module, "load_bundled", counting)
    return seen


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_experiment_is_reproduced(
    name: str, headloc: Headloc, tmp_path: Path, loads: list[dict[str, Any]]
) -> None:
    few = ("verdict.replicates=0", "logger=none", f"output_dir={tmp_path / 'out'}")
    quick = ("data.selection_prompts=24", "data.test_prompts=24", "data.held_out_prompts=24")
    result = headloc(
        "reproduce", name, "debug=fast", *few, *quick, *(REFINE if "hu" in name else [])
    )
    assert result.status == 0, result.err
    assert len(loads) == 1
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out" / "reproduction.csv").read_text().splitlines()))
    data = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    assert {row["published"] for row in rows} == {"not applicable"}
    measured = {row["metric"]: row["measured"] for row in rows}
    if "hu2025" in name:
        table = json.loads((tmp_path / "out" / "refinement" / "table.json").read_text())["rows"]
        seen = {row["key"]: row["accuracy"] for row in table if row["split"] == "seen"}
        metrics |= {f"refinement/{key}": accuracy for key, accuracy in seen.items()}
        heads = json.loads((tmp_path / "out" / "refinement" / "refinement.json").read_text())
        for kind in ("significant", "main"):
            metrics[f"refinement/heads/{kind}"] = len(heads[kind])
        assert measured["refinement/aie"]
    for key, value in measured.items():
        assert (float(value) == pytest.approx(metrics[key])) if value else key not in metrics
    assert measured["accuracy/full"]
    assert data["comparable"] is False
    assert data["published_model"] is None
    assert data["main_heads"] is None
    assert "debug=fast" in data["changes"]
    assert not any(text.startswith(("output_dir", "logger")) for text in data["changes"])
    assert "published beside measured" in result.out
    assert "not applicable" in result.out
    report = (tmp_path / "out" / "report.html").read_text()
    titles = re.findall(r"<h2>(.*?)</h2>", report)
    assert titles[:2] == ["Published beside measured", "Accuracy on fresh prompts"]
    assert ("Dose scan" in titles) == ("hu2025" in name)
    assert all(row["quantity"] in report for row in rows)
    assert Circuit.load(tmp_path / "out" / "circuit").seed == (42 if "hu2025" in name else 0)


def test_a_plain_localization_of_an_experiment_tells_what_it_can_compare(
    headloc: Headloc, tmp_path: Path
) -> None:
    quick = ("data.selection_prompts=24", "data.test_prompts=24", "data.held_out_prompts=24")
    few = ("verdict.replicates=0", "logger=none", "objective.prompts_per_task=10", *quick)
    arguments = ("localize", "debug=fast", *few, f"output_dir={tmp_path / 'out'}")
    result = headloc(*arguments, "experiment=hu2025/bundled_add_k")
    assert result.status == 0, result.err
    report = (tmp_path / "out" / "report.html").read_text()
    assert "Published beside measured" in report
    elsewhere = "not measured by this command: run headloc reproduce hu2025/bundled_add_k"
    refined = ("significant heads", "main heads", "others at mean", "by AIE", "without the main")
    assert report.count(elsewhere) == len(refined)
    accuracy = json.loads((tmp_path / "out" / "metrics.json").read_text())["accuracy/circuit"]
    row = report.split("function vector of the selected heads")[1].split("</tr>")[0]
    assert f"{accuracy:.3f}" in row
    assert "n = 24" in row
    assert not (tmp_path / "out" / "reproduction.json").exists()


def test_a_paper_experiment_on_another_model_says_whose_figures_they_are(
    headloc: Headloc, tmp_path: Path
) -> None:
    few = ("verdict.replicates=0", "logger=none", f"output_dir={tmp_path / 'out'}", "model=bundled")
    quick = ("data.selection_prompts=24", "data.test_prompts=24", "data.held_out_prompts=24")
    cleared = (
        "model.path=null",
        "model.dtype=auto",
        "objective.prompts_per_task=10",
        "refine=false",
    )
    result = headloc("reproduce", "hu2025/llama3_8b_add_k", "debug=fast", *few, *quick, *cleared)
    assert result.status == 0, result.err
    rows = list(csv.DictReader((tmp_path / "out" / "reproduction.csv").read_text().splitlines()))
    notes = {row["quantity"]: row["note"] for row in rows}
    assert notes["clean five-shot"] == "published for meta-llama/Meta-Llama-3-8B-Instruct"
    assert notes["main heads"] == "not measured: refine=false"
    assert "those of meta-llama/Meta-Llama-3-8B-Instruct, run on headloc/bundled" in result.out


def test_help_lists_every_name(headloc: Headloc) -> None:
    text = headloc("reproduce", "--help").out
    for name in NAMES:
        assert f"    {name}\n" in f"{text}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name an experiment first"),
        (["seed=1"], "Name an experiment first"),
        (["--multirun", "hu2025/bundled_add_k"], "Name an experiment first"),
        (["hu2025/bundled_addk"], "Did you mean 'hu2025/bundled_add_k'"),
        (["bundled_l1"], "no experiment 'bundled_l1' to reproduce"),
        (["hu2025/bundled_add_k", "experiment=bundled_l1"], "cannot be given here"),
        (["hu2025/bundled_add_k", "sed=1"], "no option 'sed'"),
        (["hu2025/llama3_8b_pairs"], r"task\.path is missing.*task\.path=DIR"),
        (["yu2024/llama_7b_labels"], r"task\.path is missing.*task\.path=FILE"),
        (["hu2025/bundled_add_k", "objective.layer=6"], r"objective.layer=6 is out of range.*0..5"),
        (["hu2025/bundled_add_k", "refine=maybe"], "refine=true or refine=false"),
        (["hu2025/bundled_add_k", "refine.circuit=x"], "it follows from the run"),
        (["hu2025/bundled_add_k", "refine.dosis=3"], "no option 'dosis'"),
        (["hu2025/bundled_add_k", "task.shots=0"], "needs few-shot prompts"),
    ],
)
def test_mistakes_are_told_and_nothing_is_overwritten(
    arguments: list[str], message: str, headloc: Headloc, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "reproduction.json").write_text("mine")
    before = contents(tmp_path / "out")
    place = ["output_dir=out", "logger=none"] if arguments else []
    result = headloc("reproduce", *arguments, *place)
    assert result.status == 2
    told = result.err.partition("headloc: ")[2].replace("\n", " ")
    assert re.search(message, told), told
    assert contents(tmp_path / "out") == before
