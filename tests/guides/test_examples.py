"""The worked examples of the guides do what the guides say.

All of them run in one folder, where the circuits are that others start from, with the options added
that the guides themselves name.  What a guide says is written must be there, with the
keys and columns that it names.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headloc.cli import main
from tests.guides.pages import PAGES, Example, blocks, examples

# Other guides start from the circuits of these.
FIRST = ("localize", "refine")
WORKED = [example for page in sorted({*PAGES} - {"README"}) for example in examples(page)]
VECTOR = (
    "localize", "experiment=bundled_function_vector", "debug=fast", "logger=none",
    "objective.prompts_per_task=8", "output_dir=outputs/vector",
)  # fmt: skip


def run(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def work(example: Example) -> None:
    for arguments in example.commands:
        run(*arguments, *(example.added if "show" not in arguments else ()))


@pytest.fixture(autouse=True, scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stand in the folder of all examples, with the files and circuits that others start from."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["headloc"])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        (prompts,) = blocks("task", "json")
        Path("prompts.json").write_text(prompts, encoding="utf-8")
        run(*VECTOR)
        for page in FIRST:
            for example in examples(page):
                work(example)
        yield


def keys_of(path: Path) -> set[str]:
    """Keys of a JSON object or of the records of a list, or the columns of a CSV file."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return set(next(csv.reader(file)))
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    return set(content[-1] if isinstance(content, list) else content)


def test_every_guide_to_a_command_has_a_worked_example() -> None:
    assert {page for page in PAGES if not examples(page)} == {"README", "gotchas", "bundled"}


@pytest.mark.parametrize(
    "example",
    WORKED,
    ids=lambda example: " then ".join(" ".join(words[:2]) for words in example.commands),
)
def test_a_worked_example_writes_what_the_guide_says(example: Example) -> None:
    for python in blocks(example.page, "python") if example.page == "models" else ():
        exec(compile(python, "models.md", "exec"), {})
    if example.page not in FIRST:
        work(example)
    assert example.files
    for path, keys in example.files:
        assert Path(path).is_file(), path
        if keys:
            assert set(keys) <= keys_of(Path(path)), path


def test_the_keys_that_the_guide_to_localize_explains_are_in_the_metrics() -> None:
    table = PAGES["localize"].split("| key | meaning |")[1].split("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in row.split("|")[1].split("`")[1::2]]
    metrics = keys_of(Path("outputs/first/metrics.json"))
    optional = {"greedy/heads", "greedy/jaccard"}
    for name in set(named) - optional:
        if name.endswith("/..."):
            assert any(key.startswith(name[:-3]) for key in metrics), name
        elif name == "cost/STAGE":
            assert {"cost/train", "cost/verdict"} <= metrics
        else:
            assert name in metrics
            assert name in {"time/seconds"} or name.partition("/")[0] in {
                "accuracy", "faithfulness", "heads", "stability", "cost", "accuracy_kept"
            }  # fmt: skip
    assert {"accuracy/circuit/low", "accuracy/circuit/high", "accuracy/circuit/n"} <= metrics


@pytest.mark.parametrize("page", ["analyze", "circuit"])
def test_the_python_of_a_guide_runs(page: str) -> None:
    names: dict[str, Any] = {}
    for code in blocks(page, "python"):
        exec(compile(code, f"{page}.md", "exec"), names)


def test_files_that_the_guide_to_localize_lists_are_written() -> None:
    table = PAGES["localize"].split("| file | content |")[1].split("\n\n")[0]
    named = [row.split("`")[1] for row in table.splitlines()[2:]]
    missing = {name for name in named if not (Path("outputs/first") / name).exists()}
    # The examples run without W&B.
    assert missing == {"wandb/"}
