"""A localization that is killed anywhere goes on to the result it would have had."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headloc.errors import HeadlocError
from headloc.files import write_folder, write_text
from headloc.journal import Entry, Journal, open_journal
from headloc.lm.ledger import StageCost, TokenLedger
from headloc.run_note import FOLDER, Run, was_started
from tests.commands.runs import Headloc, contents, quick

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_and_resumed_runs_end_as_one_left_in_peace() -> None:
    call = [sys.executable, "-m", "tests.trust.killing", "--kills", "3", "--seed", "1"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 differences" in done.stdout


def test_finished_stages_are_not_made_again(
    headloc: Headloc, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headloc.lm.frozen import FrozenLM

    folder = Path(shutil.copytree(finished, tmp_path / "out"))
    (folder / "metrics.json").unlink()
    passes = 0
    forward = FrozenLM._forward

    def counted(self: FrozenLM, *arguments: object, **options: object) -> object:
        nonlocal passes
        passes += 1
        return forward(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FrozenLM, "_forward", counted)
    assert headloc(*quick(folder, "resume=true")).status == 0
    resumed = passes
    passes = 0
    assert headloc(*quick(tmp_path / "new")).status == 0
    # Left are prefixes, one score of the selection prompts and probes.
    assert resumed < passes / 2
    before, after = (json.loads((p / "metrics.json").read_text()) for p in (finished, folder))
    assert before.pop("time/seconds") != after.pop("time/seconds")
    assert after == before
    for name in ("heads.csv", "outcomes.csv", "circuit/gates.safetensors"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_what_a_killed_process_was_writing_is_cleared(
    headloc: Headloc, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "out"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            write_text(folder / "heads.csv", "half")
        with pytest.raises(KeyboardInterrupt):
            write_folder(folder / "circuit", lambda place: write_text(place / "x", "half"))
    assert len(list(folder.rglob(".*.partial"))) > 1
    assert headloc(*quick(folder, "resume=true")).status == 0
    assert contents(folder).keys() == contents(finished).keys()


def test_a_path_is_not_scored_again(
    headloc: Headloc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headloc.bank.running import BankRunner

    options = ("sparsity=path", "sparsity.weights=[0.02,0.2]", "verdict.replicates=0")
    assert headloc(*quick(tmp_path, *options)).status == 0
    before = contents(tmp_path)

    def scored(*_: object) -> None:
        raise RuntimeError("scored again")

    monkeypatch.setattr(BankRunner, "accuracies", scored)
    result = headloc(*quick(tmp_path, *options, "resume=true"))
    assert result.status == 0, result.err
    for name in ("path.csv", "heads.csv", "circuit/gates.safetensors"):
        assert contents(tmp_path)[name] == before[name]


def test_a_run_that_had_saved_nothing_starts_from_the_beginning(
    headloc: Headloc, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    note = folder / FOLDER / "run.json"
    note.parent.mkdir(parents=True)
    note.write_bytes((finished / FOLDER / "run.json").read_bytes())
    result = headloc(*quick(folder, "resume=true"))
    assert result.status == 0, result.err
    name = "circuit/gates.safetensors"
    assert contents(folder)[name] == contents(finished)[name]


def test_another_setting_is_not_taken_up(headloc: Headloc, finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "out"))
    before = contents(folder)
    result = headloc(*quick(folder, "resume=true", "task.shots=3"))
    assert (result.status, "had task.shots=5, not 3" in result.err) == (2, True)
    assert contents(folder) == before


def test_a_new_run_does_not_go_on_from_what_another_left(
    headloc: Headloc, finished: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "out"))
    assert headloc(*quick(folder, "seed=5")).status == 0
    name = "circuit/gates.safetensors"
    assert contents(folder)[name] != contents(finished)[name]
    assert (
        contents(folder)["checkpoints/stages/run.json"]
        != contents(finished)["checkpoints/stages/run.json"]
    )


def test_the_note_is_written_once_and_read(tmp_path: Path) -> None:
    first = Run("localize", tmp_path, {"seed": 1, "output_dir": "x"})
    assert not was_started(tmp_path)
    assert first.mark()
    assert not replace(first, settings={"seed": 2}).mark()
    assert was_started(tmp_path)
    inputs = {"model": "model", "task": "task"}

    def take_up(run: Run, **changed: str) -> None:
        open_journal(run, {**inputs, **changed}, resume=True, writes=True)

    # What the note does not know yet is no reason to refuse.
    take_up(replace(first, settings={"seed": 1, "output_dir": "y"}))
    with pytest.raises(HeadlocError, match="had seed=1, not 2"):
        take_up(replace(first, settings={"seed": 2}))
    with pytest.raises(HeadlocError, match="the model is another"):
        take_up(first, model="other")
    with pytest.raises(HeadlocError, match="the task is another"):
        take_up(first, task="other")
    with pytest.raises(HeadlocError, match="was headloc localize, not headloc compare"):
        take_up(replace(first, command="compare"))


def test_a_stage_is_made_once_with_what_it_cost(tmp_path: Path) -> None:
    made = []

    def once(journal: Journal, ledger: TokenLedger) -> list[float]:
        def work() -> list[float]:
            made.append(1)
            ledger.add("s", StageCost(5, 3, 1))
            return [1.5, 2.5]

        return journal.once(
            "stage",
            work,
            lambda values: Entry({"values": torch.tensor(values)}),
            lambda entry: entry.tensors["values"].tolist(),
            ledger=ledger,
            stage="s",
        )

    first, second = TokenLedger(), TokenLedger()
    first.add("s", StageCost(7, 0, 1))
    assert once(Journal(tmp_path), first) == [1.5, 2.5]
    assert once(Journal(tmp_path, resume=True), second) == [1.5, 2.5]
    assert len(made) == 1
    assert second.cost("s") == StageCost(5, 3, 1)
    # Not asked to resume, broken, or foreign: made again.
    assert once(Journal(tmp_path), TokenLedger()) == [1.5, 2.5]
    (tmp_path / "stage.safetensors").write_bytes(b"broken")
    assert once(Journal(tmp_path, resume=True), TokenLedger()) == [1.5, 2.5]
    save_file({"values": torch.zeros(2)}, tmp_path / "stage.safetensors")
    assert once(Journal(tmp_path, resume=True), TokenLedger()) == [1.5, 2.5]
    # A single bit that has changed on disk is seen, wherever it is.
    content = (tmp_path / "stage.safetensors").read_bytes()
    for place in (content.index(b"cost") + 9, len(content) - 1):
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        (tmp_path / "stage.safetensors").write_bytes(flipped)
        assert once(Journal(tmp_path, resume=True), TokenLedger()) == [1.5, 2.5]
    assert len(made) == 6


def test_without_a_folder_nothing_is_kept() -> None:
    assert Journal().once("x", lambda: 3, lambda _: Entry(), lambda _: 4) == 3
