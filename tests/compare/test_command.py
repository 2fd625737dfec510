"""`headloc compare` on the tiny trained GPT-2: records, files, mistakes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from headloc.circuit import Circuit
from headloc.cli import config_dir
from headloc.commands.compare import build_methods
from headloc.compare.records import COLUMNS
from tests.commands.runs import Headloc
from tests.data.recipe import HERE, OPTIONS

MODEL = (
    "model=local", f"model.path={HERE}", "model.dtype=float32",
    *(f"task.{key}={value}" for key, value in OPTIONS.items()),
)  # fmt: skip
FEW = (
    "data.seeds=2", "data.search_prompts=32", "data.selection_prompts=24", "data.test_prompts=40",
    "data.truth_prompts=1", "data.finalist_prompts=8", "data.finalists=2", "data.mean_prompts=24",
)  # fmt: skip
THREE = "only=[learned,attribution_patching,random]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import sys

    from headloc.cli import main

    out = tmp_path_factory.mktemp("compare") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headloc"])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        arguments = ["compare", *MODEL, *FEW, THREE, "off_values=[mean]", f"output_dir={out}"]
        assert main(arguments) == 0
    return out


def test_records_have_every_size_of_every_method_and_seed(folder: Path) -> None:
    rows: list[dict[str, Any]] = json.loads((folder / "compare.json").read_text())
    assert isinstance(rows, list)
    seen: dict[tuple[str, int], set[int]] = {}
    for row in rows:
        assert set(row) == set(COLUMNS)
        assert len(row["heads"]) == row["size"]
        assert row["n"] == 40
        assert row["low"] <= row["accuracy"] <= row["high"]
        assert row["gap_to_optimum"] == pytest.approx(row["accuracy_optimum"] - row["accuracy"])
        seen.setdefault((row["method"], row["seed"]), set()).add(row["size"])
    assert set(seen) == {
        ("optimum_exhaustive", 0),
        *((name, seed) for seed in (0, 1000)
          for name in ("learned", "attribution_patching", "random", "random_layers")),
    }  # fmt: skip
    assert all(sizes == set(range(17)) for sizes in seen.values())
    chosen = [row for row in rows if row["chosen"]]
    assert len(chosen) >= 8
    all_heads = [row for row in rows if row["size"] == 16]
    assert len({row["accuracy"] for row in all_heads}) == 1
    assert all_heads[0]["accuracy_kept"] == pytest.approx(1.0)
    # Without all heads is with none of them, and the other way round.
    none = next(row for row in rows if row["size"] == 0)
    assert all_heads[0]["necessity_accuracy"] == none["accuracy"]
    assert none["necessity_accuracy"] == all_heads[0]["accuracy"]


def test_costs_follow_the_methods(folder: Path) -> None:
    entry = json.loads((folder / "summary.json").read_text())[0]
    rows = json.loads((folder / "compare.json").read_text())
    # Of the first seed, whose prompts the budget is of.
    cost = {row["method"]: row["cost_forward_equivalents"] for row in rows if row["seed"] == 0}
    assert cost["random"] == cost["random_layers"] == 0
    # Behind what is shared: 3 passes of the predicting tokens, and 17 for all heads and none.
    shared, patching = entry["shared_cost"], entry["patching_cost"]
    assert shared > 0
    assert cost["attribution_patching"] - shared == pytest.approx((patching - shared) * 3 / 17)
    assert shared + 0.5 * (patching - shared) < cost["learned"] <= patching * (1 + 1e-9)
    assert entry["optimum"] == "exhaustive"
    # One token of one prompt for every subset, in prompts of 24 tokens.
    assert entry["optimum_cost"] > 2**16 / 24
    for own in entry["methods"]:
        assert (own["first_is_below_at"] is None) == (own["method"] == "learned")


def test_a_record_is_charged_with_what_its_ranking_takes(folder: Path) -> None:
    entry = json.loads((folder / "summary.json").read_text())[0]
    rows = [row for row in json.loads((folder / "compare.json").read_text()) if row["seed"] == 0]
    for row in rows:
        own, whole = row["search_forward_equivalents"], row["cost_forward_equivalents"]
        if row["method"] == "learned":
            assert whole == pytest.approx(own + entry["shared_cost"])
        elif row["method"] == "activation_patching":
            # It has prompts of its own: their prefixes and means are in the passes counted.
            assert whole == own > 8 * 100
        elif row["method"].startswith("optimum"):
            assert whole == entry["optimum_cost"]


def test_the_table_has_every_method_at_every_shown_size(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    rows = json.loads((folder / "compare.json").read_text())
    for caption in ("Accuracy kept on fresh prompts", "Gap to the best set", "Jaccard index"):
        assert caption in page
    own = [row for row in rows if row["method"] == "learned" and row["split"] == "seen"]
    kept = {row["seed"]: row["accuracy_kept"] for row in own if row["size"] == 4}
    table = page[page.index("<h3>Accuracy kept on fresh prompts") :]
    line = next(part for part in table.split("<tr>") if ">learned<" in part)
    cells = re.findall(r'<td class="number">([^<]*)</td>', line)
    header = re.findall(r">(\d+)</th>", table[: table.index("</thead>")])
    assert cells[header.index("4")] == f"{(kept[0] + kept[1000]) / 2:.3f}"


def test_tables_pictures_and_circuits_are_left(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "compare.csv").read_text().splitlines()))
    assert len(rows) == len(json.loads((folder / "compare.json").read_text()))
    assert tuple(rows[0]) == COLUMNS
    for kind in ("png", "svg"):
        assert (folder / "pictures" / f"compare.{kind}").stat().st_size > 5000
    page = (folder / "report.html").read_text()
    assert "Content-Security-Policy" in page
    assert "<svg" in page
    assert "attribution_patching" in page
    assert not re.search(r"(src|href)=\"http", page)
    circuit = Circuit.load(folder / "circuits" / "mean" / "learned")
    chosen = {
        tuple(row["heads"].split())
        for row in rows
        if row["method"] == "learned" and row["seed"] == "0" and row["chosen"] == "1"
    }
    assert tuple(map(str, circuit.heads)) in chosen
    assert circuit.selection["rule"] == "learned"


REFUSED = {
    "method": (["only=[lerned]"], "'learned'"),
    "no method": (["only=[]"], "nothing to compare"),
    "off-value": (["off_values=[men]"], "'mean'"),
    "no off-value": (["off_values=[]"], r"off_values=\[\]"),
    "off-value of another objective": (["objective=patch"], "off_values=null"),
    "option": (["methods.random.prompts=3"], "no option"),
    "prompts": (["data.search_prompts=0"], "data.search_prompts=0"),
    "keep": (["data.keep=2"], "data.keep=2"),
    "feed-forward": (["+objective.mlps=true"], "mlps"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_are_told(mistake: str, headloc: Headloc) -> None:
    arguments, message = REFUSED[mistake]
    result = headloc("compare", *MODEL, *FEW, *arguments, "output_dir=out")
    assert result.status == 2
    assert re.search(message, result.err.replace("\n", " ")), result.err


def test_every_shipped_method_is_built() -> None:
    from omegaconf import OmegaConf

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        settings: Any = OmegaConf.to_container(compose("compare"), resolve=False)
    methods = build_methods(settings["methods"], None)
    assert next(iter(methods)) == "learned"
    assert set(methods) == {own.name for own in methods.values()}
    assert list(methods) == list(settings["methods"])
