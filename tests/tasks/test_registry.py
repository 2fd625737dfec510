"""Families by name, from options and from their own description."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headloc.errors import TaskError
from headloc.randomness import stream
from headloc.tasks import (
    AddK,
    Labels,
    Pairs,
    TaskFamily,
    build_task,
    family_names,
    option_names,
    rebuild_task,
)

PAIRS = [{"input": f"w{i}", "output": f"W{i}"} for i in range(8)]
PIECES = {"in_pre": "<", "in_sep": "=", "out_pre": "", "out_sep": ">"}


def test_build_by_name() -> None:
    names = ("add_k", "subtract_k", "multiply_k", "labels", "pairs", "prompts", "facts")
    assert family_names() == names
    assert isinstance(build_task("add_k"), AddK)
    assert build_task("add_k", {"k": [1, 2], "shots": 3}).train == ("add_1",)
    assert isinstance(build_task("labels", {"labels": ["a", "b"]}), Labels)
    assert isinstance(build_task("pairs", {"path": "bundled"}), Pairs)
    assert option_names("pairs")[0] == "path"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("addk", {}, "There is no task 'addk'. Did you mean 'add_k'"),
        ("add_k", {"shot": 3}, "task=add_k has no option 'shot'. Did you mean 'shots'"),
        ("pairs", {"k": 3}, "task=pairs has no option 'k'. "),
        (None, {}, "There is no task None"),
    ],
)
def test_unknown_names(name: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        build_task(name, options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("add_k", {}),
        ("add_k", {"k": [3, 9, 4], "held_out_k": [9], "template": PIECES, "wrong_labels": 0.2}),
        ("add_k", {"k_min": -3, "k_max": 3, "held_out_k": [], "y_min": 0, "y_max": 90}),
        ("subtract_k", {}),
        ("subtract_k", {"k_min": 0, "x_max": 60, "y_min": None, "wrong_labels": 0.2}),
        ("multiply_k", {"k": [2, 5, 3], "held_out_k": [5], "y_max": 200}),
        ("pairs", {"tasks": ["capital"], "held_out": ["language"]}),
        ("labels", {"labels": ["x", "y", "z"], "shots_per_label": 2, "max_tasks": 30, "seed": 5}),
        ("pairs", {"held_out": ["language"], "max_items": 20, "shots": 2}),
    ],
)
def test_description_rebuilds_the_family(name: str, options: dict[str, Any]) -> None:
    family = build_task(name, options)
    description = json.loads(json.dumps(family.describe()))
    again = rebuild_task(description)
    assert again.describe() == family.describe() == description
    assert drawn(again) == drawn(family)
    assert set(family.options()) <= set(option_names(name))


def drawn(family: TaskFamily) -> Any:
    return family.draw(20, stream(0), split="train", items="fit")


def test_changed_data_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps(PAIRS))
    description = Pairs(path).describe()
    rebuild_task(description)
    path.write_text(json.dumps([*PAIRS[1:], {"input": "w0", "output": "new"}]))
    with pytest.raises(TaskError, match="data of task=pairs has changed"):
        rebuild_task(description)


@pytest.mark.parametrize("description", [{}, {"family": "add_k"}, None, "add_k"])
def test_not_a_description(description: Any) -> None:
    with pytest.raises(TaskError, match="needs 'family' and 'options'"):
        rebuild_task(description)


def test_importing_tasks_is_cheap() -> None:
    code = (
        "import sys, headloc.tasks, headloc.randomness; "
        "headloc.tasks.Labels(); headloc.tasks.Pairs(); "
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
