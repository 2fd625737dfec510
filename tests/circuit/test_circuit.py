"""Saving, loading and comparing circuits, and files that are not circuits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headloc.circuit import Circuit
from headloc.circuit.diff import compare, head_frequency, mean_jaccard, spearman
from headloc.circuit.exports import EXPORTS, export_text
from headloc.errors import CircuitError, HeadlocError
from headloc.heads import HeadId
from tests.localizer.planted import planted_lm

HEADS = 12


def make(heads: tuple[tuple[int, int], ...] = ((0, 1), (2, 3)), **changes: object) -> Circuit:
    gates = torch.linspace(0, 1, HEADS)
    circuit = Circuit(
        heads=tuple(HeadId(*pair) for pair in heads),
        gates=gates,
        scores=gates * 2 - 1,
        model={"name": "tiny/model", "heads": [4, 4, 4], "model_type": "llama", "width": 32},
        objective={"name": "in_place", "off_value": "mean", "loss": "kl", "positions": "last"},
        task={"family": "add_k", "options": {}},
        selection={"rule": "threshold", "value": 0.5},
        seed=3,
        metrics={"accuracy/full": 0.9, "accuracy/full/low": 0.85, "accuracy/full/high": 0.95},
        tensors={"off/000": torch.randn(10, 4, 8), "off/counts": torch.ones(10)},
    )
    return replace(circuit, **changes)  # type: ignore[arg-type]


def test_a_circuit_survives_saving(tmp_path: Path) -> None:
    circuit = make()
    loaded = Circuit.load(circuit.save(tmp_path / "circuit"))
    assert loaded.to_dict() == circuit.to_dict()
    assert torch.equal(loaded.gates, circuit.gates)
    assert torch.equal(loaded.scores, circuit.scores)
    assert torch.equal(loaded.tensors["off/000"], circuit.tensors["off/000"])


def test_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    circuit = make()
    first, second = circuit.save(tmp_path / "a"), circuit.save(tmp_path / "b")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["README.md", "circuit.json", "gates.safetensors"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_heads_are_written_in_order_whatever_order_they_were_given_in(tmp_path: Path) -> None:
    folder = make(((2, 3), (0, 1), (1, 0))).save(tmp_path / "c")
    written = json.loads((folder / "circuit.json").read_text())["heads"]
    assert written == [[0, 1], [1, 0], [2, 3]]


def test_a_failed_save_leaves_the_earlier_circuit(tmp_path: Path) -> None:
    folder = make().save(tmp_path / "c")
    broken = make(metrics={"accuracy/full": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        broken.save(folder)
    assert Circuit.load(folder).metrics["accuracy/full"] == 0.9
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def corrupt(folder: Path, **changes: object) -> Path:
    path = folder / "circuit.json"
    data = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            del data[key]
        else:
            data[key] = value
    path.write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": ...},
        {"model": ...},
        {"heads": "L0H1"},
        {"heads": [[0]]},
        {"heads": [[0, 4]]},
        {"heads": [[3, 0]]},
        {"heads": [[0, 1], [0, 1]]},
        {"heads": [[0, -1]]},
        {"heads": [[True, 1]]},
        {"model": {"heads": 3}},
        {"model": {"heads": [4, "x"]}},
        {"seed": "0"},
        {"task": 3},
    ],
)
def test_a_circuit_of_the_wrong_shape_is_refused(tmp_path: Path, changes: dict) -> None:
    folder = corrupt(make().save(tmp_path / "c"), **changes)
    with pytest.raises(CircuitError, match=r"circuit\.json"):
        Circuit.load(folder)


def test_a_circuit_of_a_newer_schema_says_so(tmp_path: Path) -> None:
    folder = corrupt(make().save(tmp_path / "c"), schema_version=99)
    with pytest.raises(CircuitError, match="newer headloc"):
        Circuit.load(folder)


def test_broken_files_are_refused_with_their_name(tmp_path: Path) -> None:
    folder = make().save(tmp_path / "c")
    gates = folder / "gates.safetensors"
    whole = gates.read_bytes()
    gates.write_bytes(whole[:-7])
    with pytest.raises(CircuitError, match="broken"):
        Circuit.load(folder)
    gates.unlink()
    with pytest.raises(CircuitError, match=r"no .*gates\.safetensors"):
        Circuit.load(folder)
    gates.write_bytes(whole)
    (folder / "circuit.json").write_text("{not json")
    with pytest.raises(CircuitError, match="not valid JSON"):
        Circuit.load(folder)
    (folder / "circuit.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CircuitError, match="UTF-8"):
        Circuit.load(folder)


def test_gates_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = make(gates=torch.ones(11)).save(tmp_path / "c")
    with pytest.raises(CircuitError, match="12 floats"):
        Circuit.load(folder)


def test_a_folder_without_a_circuit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CircuitError, match="not a circuit"):
        Circuit.load(tmp_path)


def test_comparison_counts_shared_heads() -> None:
    overlap = compare(make(), make(((0, 1), (1, 1), (2, 0))))
    assert overlap.shared == (HeadId(0, 1),)
    assert overlap.only_first == (HeadId(2, 3),)
    assert overlap.only_second == (HeadId(1, 1), HeadId(2, 0))
    assert overlap.jaccard == pytest.approx(1 / 4)
    assert overlap.rank_correlation == pytest.approx(1.0)


def test_circuits_of_models_of_different_shape_are_not_compared() -> None:
    other = make(model={"name": "other", "heads": [2, 2]}, heads=())
    with pytest.raises(CircuitError, match="different shape"):
        compare(make(), other)


def test_frequency_and_mean_overlap_over_several_circuits() -> None:
    circuits = [make(), make(), make(((0, 1),))]
    assert head_frequency(circuits) == {HeadId(0, 1): 1.0, HeadId(2, 3): pytest.approx(2 / 3)}
    assert mean_jaccard(circuits) == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_spearman_shares_ranks_of_ties() -> None:
    a, b = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    # scipy.stats.spearmanr(a, b) gives 0.9486832980505138.
    assert spearman(a, b) == pytest.approx(0.9486832980505138)
    assert spearman(a, torch.ones(4)) == 0.0


def test_exports_have_their_readers_form() -> None:
    circuit = make()
    assert json.loads(export_text(circuit, "heads")) == [[0, 1], [2, 3]]
    rows = export_text(circuit, "csv").splitlines()
    assert rows[0] == "layer,head,gate,score,selected"
    assert len(rows) == HEADS + 1
    mib = json.loads(export_text(circuit, "mib"))
    assert mib["cfg"]["n_heads"] == 4
    assert mib["nodes"]["a2.h3"]["in_graph"] is True
    assert mib["nodes"]["a1.h0"]["in_graph"] is False
    assert "score" not in mib["nodes"]["m0"]
    headkv = export_text(circuit, "headkv")
    assert headkv.count("\n") == 1
    assert min(score[0] for score in json.loads(headkv).values()) >= 0
    assert set(EXPORTS) == {"heads", "function_vectors", "csv", "mib", "headkv"}


def test_an_unknown_format_suggests_the_nearest() -> None:
    with pytest.raises(HeadlocError, match="'headkv'"):
        export_text(make(), "headvk")


def test_the_card_keeps_hostile_names_in_their_place(tmp_path: Path) -> None:
    circuit = make(model={"name": "x`\n# evil\n| y", "heads": [4, 4, 4], "model_type": "llama"})
    card = (circuit.save(tmp_path / "c") / "README.md").read_text()
    assert not any(line.startswith("# evil") for line in card.splitlines())


@pytest.mark.parametrize("name", ["function_vector", "patch"])
def test_a_circuit_of_task_means_tells_of_them_and_is_not_applied_in_place(
    name: str, tmp_path: Path
) -> None:
    objective = {"name": name, "off_value": "zero", "layer": None, "site": "attention"}
    circuit = make(objective=objective, metrics={"accuracy/circuit": 0.5})
    card = (circuit.save(tmp_path / "c") / "README.md").read_text()
    assert "None" not in card
    assert "circuit.apply" not in card
    assert "headloc evaluate circuit=" in card
    assert "zero-shot prompts" in card
    assert ("a third of the depth" in card) == (name == "function_vector")
    refused = pytest.raises(HeadlocError, match=f"objective={name}.*headloc evaluate")
    with refused, circuit.apply(planted_lm()):
        pass
    in_place = (make().save(tmp_path / "d") / "README.md").read_text()
    assert "circuit.apply(lm)" in in_place
