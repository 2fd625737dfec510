"""Broken and hostile files give a clear error: never a crash, a hang or code that runs.

A sample of what `python -m tests.trust.fuzzing` does at length, and what it has found.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headloc.circuit import Circuit
from headloc.errors import HeadlocError
from headloc.files import read_json
from headloc.lm.checkpoint import check_folder
from headloc.tasks import Labels, Pairs, rebuild_task
from tests.circuit.made import tiny_circuit
from tests.commands.runs import Headloc
from tests.tiny import tiny_lm
from tests.trust.drawing import check
from tests.trust.fuzzing import attempt, fuzz
from tests.trust.mutation import mutate
from tests.trust.target import Target
from tests.trust.targets import targets

NAMES = (
    "circuit", "pairs", "labels, JSON", "labels, CSV", "prompts", "facts", "head file heads",
    "head file function_vectors", "head file csv", "head file mib", "head file headkv", "config",
    "checkpoint folder", "model", "gate checkpoint", "prompt file auto_circuit",
    "prompt file eap_ig", "prompt file edge_pruning", "circuit, applied", "circuit, task means",
    "stages of a run", "task mean", "training state",
)  # fmt: skip
SLOW = {"config": 20, "model": 40}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    found = targets(tmp_path_factory.mktemp("targets"))
    return {target.name: target for target in found}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_broken_is_read_or_refused(
    name: str, made: dict[str, Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["headloc"])
    counts, findings = fuzz(made[name], SLOW.get(name, 150), seed=2)
    assert not findings, findings[0]
    assert counts["refused"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_what_hypothesis_draws_is_read_or_refused(
    name: str, made: dict[str, Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["headloc"])
    check(made[name], 5 if name in SLOW else 40)


def test_hypothesis_finds_the_smallest_file_that_breaks() -> None:
    def read(folder: Path) -> None:
        try:
            data = json.loads((folder / "f").read_text())
            found = data["number"]
        except (ValueError, TypeError, LookupError, RecursionError):
            raise HeadlocError("refused") from None
        if isinstance(found, list):
            raise KeyError(json.dumps(data))

    content = b'{"number": 1, "text": "a"}'
    with pytest.raises(KeyError) as caught:
        check(Target("t", {"f": content}, read), 500)
    assert json.loads(caught.value.args[0]) == {"number": [], "text": "a"}


def test_all_targets_are_fuzzed(made: dict[str, Target]) -> None:
    assert set(made) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_unbroken_files_are_read(
    name: str, made: dict[str, Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["headloc"])
    for file, content in made[name].files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    made[name].read(tmp_path)


def test_the_fuzzer_finds_a_crash_a_hang_and_an_empty_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(folder: Path) -> None:
        raise KeyError("x")

    def hang(folder: Path) -> None:
        while True:
            pass

    def mumble(folder: Path) -> None:
        raise HeadlocError(" ")

    monkeypatch.setattr("tests.trust.fuzzing.SECONDS", 1)
    for read in (crash, hang, mumble):
        assert not isinstance(attempt(Target("t", {"f": b"[1]"}, read), tmp_path, 0, 0), str)


def test_mutations_can_be_made_again_and_differ() -> None:
    content = json.dumps({"a": [1, 2, {"b": "c"}]}).encode() * 3
    made = [mutate(content, np.random.default_rng(n)) for n in range(200)]
    assert made == [mutate(content, np.random.default_rng(n)) for n in range(200)]
    assert len(set(made)) > 150


def test_a_message_stays_short_and_keeps_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    rows = [f"word{i},{'ab'[i % 2]}" for i in range(12)]
    path.write_text("\n".join(["text,class", *rows, "long," + "x" * 50_000]))
    with pytest.raises(HeadlocError) as caught:
        Labels(str(path)).check_items(items="fit")
    message = str(caught.value)
    assert len(message) < 5_000
    assert "xxx" in message
    assert "characters left out" in message
    assert str(HeadlocError("short")) == "short"


class _Runs:
    """Unpickling it would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "ran"


def test_a_pickle_in_place_of_a_circuit_s_tensors_does_not_run(tmp_path: Path, trace: Path) -> None:
    folder = tiny_circuit(tiny_lm("llama")).save(tmp_path / "circuit")
    (folder / "gates.safetensors").write_bytes(pickle.dumps(_Runs(trace)))
    with pytest.raises(HeadlocError, match="not a safetensors file"):
        Circuit.load(folder)
    assert not trace.exists()


def test_a_pickle_in_place_of_a_checkpoint_does_not_run(
    headloc: Headloc, tmp_path: Path, trace: Path
) -> None:
    folder = tmp_path / "out" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"state_dict": _Runs(trace)}, folder / "gates.ckpt")
    result = headloc("localize", "debug=fast", "logger=none", "resume=true",
                     f"output_dir={tmp_path / 'out'}")  # fmt: skip
    assert result.status == 2
    assert "gates.ckpt cannot be read" in result.err
    assert not trace.exists()


def test_a_pickle_in_place_of_weights_does_not_run(tmp_path: Path, trace: Path) -> None:
    tiny_lm("llama").model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Runs(trace)))
    with pytest.raises(HeadlocError, match="safetensors alone"):
        check_folder(tmp_path)
    assert not trace.exists()


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data.update(selection=[1]), "'selection' is not an object"),
        (lambda data: data.update(metrics=0), "'metrics' is not an object"),
        (lambda data: data["metrics"].update(x=float("nan")), "metrics.x is not a finite"),
        (lambda data: data["metrics"].update(x=10**400), "metrics.x is not a finite"),
    ],
    ids=["selection", "metrics", "nan", "huge"],
)
def test_every_part_of_a_circuit_is_checked(change: Change, told: str, tmp_path: Path) -> None:
    folder = tiny_circuit(tiny_lm("llama")).save(tmp_path / "circuit")
    data = json.loads((folder / "circuit.json").read_text())
    change(data)
    (folder / "circuit.json").write_text(json.dumps(data))
    with pytest.raises(HeadlocError, match=told):
        Circuit.load(folder)


def test_options_of_a_task_that_are_none_are_refused() -> None:
    with pytest.raises(HeadlocError, match="Give a mapping"):
        rebuild_task({"family": "add_k", "options": 3})


@pytest.mark.parametrize(
    "text", ["9" * 5000, "[" * 100_000, '{"a": ' * 100_000], ids=["digits", "lists", "objects"]
)
def test_numbers_and_nesting_without_end_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text(text)
    with pytest.raises(HeadlocError, match=r"file\.json"):
        read_json(file, "file")
    with pytest.raises(HeadlocError, match=r"file\.json"):
        Pairs(str(file))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HeadlocError, match=r"config\.json"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../other.safetensors", "/etc/passwd", "a/b", "\x00", "", ".."],
    ids=["up", "absolute", "below", "null", "empty", "parent"],
)
def test_an_index_that_points_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(HeadlocError, match="no file of its own folder"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"task:\n  shots: [1\n", "line"),
        (b"a: 1\na: 2\n", "duplicate key a"),
        (b"\xaa\xff", "utf-8"),
        (b"[" * 3000, "cannot be composed"),
        (b"# @package [[[[", "cannot be composed"),
        (b"!!python/object/apply:os.system ['true']\n", "python/object"),
    ],
    ids=["open", "twice", "bytes", "nested", "package", "object"],
)
def test_a_configuration_that_is_no_yaml_is_told(
    content: bytes, told: str, headloc: Headloc, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "x.yaml").write_bytes(content)
    result = headloc("localize", "--config-dir", tmp_path / "mine", "experiment=x", "--cfg", "job")
    assert result.status == 2
    assert told in result.err
    assert "Traceback" not in result.err
