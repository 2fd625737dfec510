"""Facts: read in both shapes, drawn once at most, rendered as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headloc.bundled import load_bundled
from headloc.errors import TaskError
from headloc.randomness import stream
from headloc.tasks import Facts, encode_all, rebuild_task, render

LIST = [
    {"prompt": f"The capital of land{i} is", "subject": f"land{i}", "target": f" town{i}",
     "relation": "capital", "known_id": i}
    for i in range(5)
] + [{"prompt": "land1 lies in", "attribute": "Asia", "relation_id": "P30"}]  # fmt: skip


def written(folder: Path, content: Any) -> Path:
    path = folder / "facts.json"
    path.write_text(json.dumps(content))
    return path


def test_relations_are_tasks_and_a_draw_takes_turns_and_repeats_nothing(tmp_path: Path) -> None:
    task = Facts(written(tmp_path, LIST))
    assert task.train == ("capital", "P30")
    drawn = task.draw(100, stream(0, "facts"), split="train")
    assert [e.task for e in drawn] == ["capital", "P30", *["capital"] * 4]
    assert {e.query for e in drawn} == {row["prompt"] for row in LIST}
    # A target without a blank gets the one that the text goes on with.
    assert task.fact(drawn[1]).target == drawn[1].answer == " Asia"
    fit = {e.query for e in task.draw(9, stream(0, "f"), split="train", items="fit")}
    score = {e.query for e in task.draw(9, stream(0, "s"), split="train", items="score")}
    assert not fit & score
    assert len(fit | score) == len(LIST)
    assert rebuild_task(task.describe()).describe() == task.describe()


def test_a_relation_with_templates_is_filled(tmp_path: Path) -> None:
    content = {
        "name": "tongue",
        "prompt_templates": ["People in {} speak", "unused {}"],
        "samples": [{"subject": "Italy", "object": "Italian"}],
    }
    task = Facts(written(tmp_path, content))
    (example,) = task.draw(1, stream(0, "x"), split="train")
    assert (example.task, example.query, example.answer) == (
        "tongue", "People in Italy speak", " Italian",
    )  # fmt: skip
    assert task.fact(example).subject == "Italy"


def test_the_bundled_facts_are_prompts_of_the_bundled_model() -> None:
    task = Facts(relations=["capital"], max_items=7)
    drawn = task.draw(99, stream(0, "x"), split="train")
    assert len(drawn) == 7
    encoded = encode_all(load_bundled().tokenizer, [render(e, task.template) for e in drawn])
    assert all(len(item.prompt.answer_ids) == 1 and not item.unknown for item in encoded)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ([], {}, "not a list of facts"),
        ({"name": "x"}, {}, "no relation with"),
        ([3], {}, "entry 0 is not an object"),
        ([{"prompt": "x is", "target": " "}], {}, "'target' or 'attribute' must be text"),
        ([{"prompt": "x is", "target": "y", "subject": 3}], {}, "'subject' and 'relation'"),
        ([{"prompt": "a", "target": t} for t in "yz"], {}, "has the targets ' y' and ' z'"),
        (LIST, {"relations": ["capitals"]}, "Did you mean 'capital'"),
        (LIST, {"max_items": 0}, "Give 1 or more"),
    ],
)
def test_mistakes(tmp_path: Path, content: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Facts(written(tmp_path, content), **options)
    with pytest.raises(TaskError, match="no demonstrations"):
        Facts().draw(2, stream(0, "x"), split="train", shots=2)
