"""Prompt files of other tools as task files, and the task that reads these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headloc.bundled import load_bundled
from headloc.cli import main
from headloc.errors import HeadlocError, TaskError
from headloc.interop.prompt_files import PROMPT_FORMATS, read_prompts
from headloc.objectives import InPlace
from headloc.objectives.prompts import encode_examples
from headloc.randomness import stream
from headloc.tasks import Prompts, rebuild_task
from headloc.tasks.prompts import Prompt

AUTO_CIRCUIT = {
    "seq_labels": ["a", "b"],
    "word_idxs": {"IO": 1},
    "prompts": [
        {"clean": "When Marco and Ann ... to", "corrupt": "When Bill and Ann ... to",
         "answers": [" Marco"], "wrong_answers": [" Ann"]},
        {"clean": "Then", "corrupt": "Now", "answers": [" x"]},
    ],
}  # fmt: skip
CSV = 'clean,corrupted,correct_idx,incorrect_idx,more\n1 + 2 =,1 + 7 =,3,8,x\n"a, b",c,1,2,y\n'
LINES = (
    '{"clean": "1 + 2 = <predict>3</predict>", "corrupted": "1 + 7 = <predict>8</predict>"}\n\n'
    '{"clean": "4:\\n<predict> four</predict>\\n", "corrupted": "5:\\n<predict> five</predict>"}\n'
)


def read(tmp_path: Path, kind: str, content: str | object) -> list[Prompt]:
    path = tmp_path / "file"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_prompts(path, kind, lambda token: f" <{token}>")


def test_every_format_is_read_with_its_blanks(tmp_path: Path) -> None:
    assert read(tmp_path, "auto_circuit", AUTO_CIRCUIT) == [
        Prompt("When Marco and Ann ... to", " Marco", "When Bill and Ann ... to", " Ann"),
        Prompt("Then", " x", "Now"),
    ]
    assert read(tmp_path, "eap_ig", CSV) == [
        Prompt("1 + 2 =", " <3>", "1 + 7 =", " <8>"),
        Prompt("a, b", " <1>", "c", " <2>"),
    ]
    assert read(tmp_path, "edge_pruning", LINES) == [
        Prompt("1 + 2 = ", "3", "1 + 7 = ", "8"),
        Prompt("4:\n", " four", "5:\n", " five"),
    ]


GOOD = AUTO_CIRCUIT["prompts"][1]  # type: ignore[index]
BROKEN: list[tuple[str, Any, str]] = [
    ("auto_circuit", [], "no list"),
    ("auto_circuit", {"prompts": 3}, "no list"),
    ("auto_circuit", {"prompts": []}, "not a list of prompts"),
    ("auto_circuit", {"prompts": [3]}, "prompt 0 is not an object"),
    ("auto_circuit", {"prompts": [{**GOOD, "clean": [1, 2]}]}, "'clean' is not text"),
    ("auto_circuit", {"prompts": [{**GOOD, "answers": ["a", "b"]}]}, "2 right answers"),
    ("auto_circuit", {"prompts": [{**GOOD, "answers": []}]}, "'answers'"),
    ("auto_circuit", {"prompts": [{**GOOD, "answers": [7]}]}, "not text"),
    ("auto_circuit", {"prompts": [{**GOOD, "answers": [" "]}]}, "visible"),
    ("auto_circuit", {"prompts": [GOOD, {**GOOD, "answers": ["b"]}]}, "before, with another"),
    ("auto_circuit", {"prompts": [{**GOOD, "clean": "\ud800"}]}, "visible"),
    ("auto_circuit", "{", "not valid JSON"),
    ("eap_ig", "clean,corrupted\na,b\n", "no column correct_idx"),
    ("eap_ig", "clean,corrupted,correct_idx,incorrect_idx\na,b,[1],2\n", "not one token id"),
    ("eap_ig", "clean,corrupted,correct_idx,incorrect_idx\na,b\n", "not one token id"),
    ("edge_pruning", "{}\n", "'clean' is not text"),
    ("edge_pruning", "[1]\n", "not an object"),
    ("edge_pruning", "{\n", "line 1 is not valid JSON"),
    ("edge_pruning", '{"clean": "1", "corrupted": "2"}', "must end with its answer"),
    ("edge_pruning", "", "not a list of prompts"),
]


@pytest.mark.parametrize(("kind", "content", "message"), BROKEN)
def test_a_file_that_is_wrong_is_told_with_its_place(
    kind: str, content: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=message):
        read(tmp_path, kind, content)


def test_formats_and_tokenizers_that_are_missing_are_told(tmp_path: Path) -> None:
    with pytest.raises(HeadlocError, match="Did you mean 'eap_ig'"):
        read(tmp_path, "eapig", CSV)
    (tmp_path / "file").write_text(CSV)
    with pytest.raises(TaskError, match="model="):
        read_prompts(tmp_path / "file", "eap_ig")
    assert set(PROMPT_FORMATS) == {"auto_circuit", "eap_ig", "edge_pruning"}


def sums(tmp_path: Path, count: int = 40) -> Path:
    """A file of add-5 prompts for the bundled model, whole texts with three demonstrations."""
    path = tmp_path / "sums.json"
    entries = [
        {
            "prompt": f"12->17#30->35#61->66#{x}->",
            "answer": str(x + 5),
            "counterfactual": f"12->19#30->37#61->68#{x}->",
            "other_answer": str(x + 7),
        }
        for x in range(13, 13 + count)
    ]
    path.write_text(json.dumps(entries))
    return path


def test_prompts_are_drawn_once_and_pools_share_none(tmp_path: Path) -> None:
    task = Prompts(sums(tmp_path))
    drawn = {
        items: task.draw(100, stream(0, items), split="train", items=items)  # type: ignore[arg-type]
        for items in ("fit", "score", "all")
    }
    texts = {items: [example.query for example in examples] for items, examples in drawn.items()}
    assert (
        [len(set(texts[items])) for items in texts] == [20, 20, 40] == [*map(len, texts.values())]
    )
    assert not set(texts["fit"]) & set(texts["score"])
    assert len(task.draw(3, stream(0, "x"), split="train")) == 3
    again = rebuild_task(task.describe())
    assert again.describe() == task.describe()
    with pytest.raises(TaskError, match="shots at 0"):
        task.draw(3, stream(0, "x"), split="train", shots=2)
    with pytest.raises(TaskError, match="no held-out"):
        task.draw(3, stream(0, "x"), split="held_out")


def test_whole_prompts_are_encoded_as_they_are_and_answered(tmp_path: Path) -> None:
    lm, task = load_bundled(), Prompts(sums(tmp_path))
    examples = task.draw(20, stream(0, "x"), split="train")
    encoded, batch = encode_examples(lm, examples, task.template)
    assert [item.text for item in encoded] == [example.query for example in examples]
    objective = InPlace(off_value="resample", loss="kl")
    prompts = objective.prompt_set(lm, task, examples, seed=0, use="x")
    full = objective.logits(lm, prompts, slice(None), None)
    right = (full.argmax(-1) == batch.target_BJ).all(1)
    assert float(right.float().mean()) > 0.9
    # With every head resampled at the last token, the corrupted demonstrations win.
    import torch

    closed = objective.logits(lm, prompts, slice(None), torch.zeros(lm.layout.total))
    assert float((closed.argmax(-1) == batch.target_BJ).all(1).float().mean()) < 0.2


def test_a_prompt_without_a_counterfactual_cannot_be_resampled(tmp_path: Path) -> None:
    path = tmp_path / "few.json"
    entries = [{"prompt": f"{x}->", "answer": str(x)} for x in range(10, 20)]
    path.write_text(json.dumps(entries))
    task = Prompts(path)
    example = task.draw(1, stream(0, "x"), split="train")[0]
    with pytest.raises(TaskError, match="no counterfactual"):
        task.counterfactual(example, np.random.default_rng(0))
    path.write_text(json.dumps(entries[:3]))
    with pytest.raises(TaskError, match="four or more"):
        Prompts(path)
    path.write_text(json.dumps([{**entries[0], "input": "x"}] * 4))
    with pytest.raises(TaskError, match="'input'"):
        Prompts(path)


def test_the_command_writes_what_the_task_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_bundled().tokenizer
    assert tokenizer is not None
    rows = ["clean,corrupted,correct_idx,incorrect_idx"]
    for x in range(20, 26):
        right, wrong = (tokenizer(str(x + k), add_special_tokens=False).input_ids for k in (5, 7))
        rows.append(f"12->17#{x}->,12->19#{x}->,{right[0]},{wrong[0]}")
    (tmp_path / "in.csv").write_text("\n".join(rows))
    target = tmp_path / "out.json"
    words = ["task", "import", str(tmp_path / "in.csv"), "format=eap_ig", f"output={target}"]
    assert main(words) == 2
    assert "model=bundled" in capsys.readouterr().err
    assert main([*words, "model=bundled"]) == 0
    assert capsys.readouterr().out == f"6 prompts  {target}\n"
    task = Prompts(target)
    pairs = {x.query: x.answer for x in task.draw(9, stream(0, "x"), split="train")}
    assert pairs == {f"12->17#{x}->": str(x + 5) for x in range(20, 26)}
    (tmp_path / "in.csv").write_text(f"{rows[0]}\na,b,999999,1\n")
    assert main([*words, "model=bundled"]) == 2
    assert "999999" in capsys.readouterr().err
