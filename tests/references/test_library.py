"""The shipped references: valid, in the words of the papers, and one for every paper experiment."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from headloc.cli import config_dir
from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.references import library, load_reference, parse_reference, reference_names

DATA = Path(library.__file__).parent / "data"
EXPERIMENTS = sorted(
    path.relative_to(config_dir() / "experiment").with_suffix("").as_posix()
    for path in (config_dir() / "experiment").glob("*/*.yaml")
)


def figures(name: str) -> dict[str, tuple[float | None, float | None]]:
    return {q.name: (q.low, q.high) for q in load_reference(name).quantities}


def test_every_paper_experiment_has_a_reference_of_its_model() -> None:
    assert list(reference_names()) == [name for name in EXPERIMENTS if name in reference_names()]
    for name in reference_names():
        reference = load_reference(name)
        assert reference.experiment == name
        config = yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())
        bundled = "bundled" in name
        assert reference.published is not bundled
        if not bundled:
            assert reference.model == config["model"]["path"]
        assert len({q.name for q in reference.quantities}) == len(reference.quantities) > 0
        for quantity in reference.quantities:
            assert (quantity.read is None) == (quantity.low is None)
            assert quantity.section


def test_the_figures_are_those_of_the_papers() -> None:
    llama = load_reference("hu2025/llama3_8b_add_k")
    assert llama.main_heads == (HeadId(15, 2), HeadId(15, 1), HeadId(13, 6))
    assert llama.arxiv == "2505.05145"
    found = figures("hu2025/llama3_8b_add_k")
    assert found["clean five-shot"] == (0.857, 0.87)
    assert found["selected heads"] == (33, 33)
    assert found["function vector of the selected heads"] == (0.78, 0.78)
    assert found["main heads, others at mean"] == (0.70, 0.70)
    assert found["L15H2 x 6, others at mean"] == (0.877, 0.877)
    assert found["L15H1 x 7, others at mean"] == (0.843, 0.843)
    assert found["L13H6 x 5, others at mean"] == (0.713, 0.713)
    assert found["function vector of as many heads by AIE"] == (0.414, 0.414)
    assert found["five-shot without the main heads"] == (0.43, 0.43)
    phi = load_reference("hu2025/phi4_add_k").main_heads
    assert phi == (HeadId(18, 12), HeadId(18, 14), HeadId(17, 23))
    qwen = load_reference("hu2025/qwen25_7b_add_k").main_heads
    assert qwen == (HeadId(21, 0), HeadId(21, 5), HeadId(21, 4), HeadId(21, 2))
    assert figures("hu2025/qwen25_7b_add_k")["selected heads"] == (230, 230)
    labels = figures("yu2024/llama_7b_labels")
    assert labels["full vocabulary accuracy"] == (0.876, 0.876)
    assert labels["without about 1 % of the heads"] == (0.244, 0.244)
    facts = figures("yu2024/gpt2_large_facts")
    assert facts["MRR, log-probability increase"] == (0.201, 0.201)
    assert facts["MRR, |m| x 1/rank"] == (0.232, 0.232)
    read = {q.read for q in load_reference("yu2024/gpt2_large_facts").quantities}
    assert read == {"digest"}


def test_nothing_is_said_to_be_published_for_the_bundled_model() -> None:
    for name in (name for name in reference_names() if "bundled" in name):
        reference = load_reference(name)
        assert not reference.main_heads
        assert all(q.low is None and not q.published for q in reference.quantities)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(HeadlocError, match="Did you mean 'hu2025/phi4_add_k'"):
        load_reference("hu2025/phi_add_k")


def broken(**changes: Any) -> dict[str, Any]:
    data = json.loads((DATA / "hu2025" / "llama3_8b_add_k.json").read_text())
    quantity = changes.pop("quantity", {})
    data["quantities"][0] = {**copy.deepcopy(data["quantities"][0]), **quantity}
    return {**data, **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "not a JSON object"),
        (broken(modle="x"), "unknown field 'modle'. Did you mean 'model'"),
        ({"experiment": "x"}, "lacks the field 'paper'"),
        (broken(published="yes"), "published='yes' is not a bool"),
        (broken(main_heads=[[1]]), r"\[1\] in main_heads is not a \[layer, head\] pair"),
        (broken(main_heads=[[1, -2]]), "is not a"),
        (broken(quantity={"value": "much"}), "value='much' is neither a number"),
        (broken(quantity={"value": [2, 1]}), "neither a number nor"),
        (broken(quantity={"value": float("nan")}), "neither a number nor"),
        (broken(quantity={"value": None}), "read='seen' should be null"),
        (broken(quantity={"read": "heard"}), "read='heard' should be 'seen' or 'digest'"),
        (broken(quantity={"unit": "%"}), "quantity 0 should have exactly the fields"),
        (broken(quantity={"name": "selected heads"}), "'selected heads' twice"),
        (broken(quantity={"metric": 3}), "metric=3 is not the key"),
        (broken(published=False, main_heads=[]), "nothing was published"),
    ],
)
def test_a_broken_reference_is_refused(data: Any, message: str) -> None:
    with pytest.raises(HeadlocError, match=message):
        parse_reference(data, "some.json")


def test_importing_references_is_cheap() -> None:
    code = (
        "import sys, headloc.references as r; r.load_reference('hu2025/phi4_add_k');"
        "print([n for n in ('torch', 'numpy', 'transformers', 'yaml') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
