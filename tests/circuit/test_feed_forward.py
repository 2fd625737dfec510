"""Circuits that keep feed-forward blocks: saved, loaded, compared, exported, applied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headloc.circuit import Circuit
from headloc.circuit.card import circuit_card
from headloc.circuit.diff import compare
from headloc.circuit.exports import export_text, left_out
from headloc.circuit.feed_forward import FeedForward
from headloc.errors import CircuitError
from headloc.heads import HeadId
from headloc.lm.batch import Role
from headloc.lm.components import OffValues, components_of, gate_components
from tests.tiny import HEADS, LAYERS, tiny_batch, tiny_lm

TOTAL = HEADS * LAYERS


def make(kept: tuple[int, ...] | None = (1,), family: str = "llama", **changes: object) -> Circuit:
    lm = tiny_lm(family)
    part = None
    if kept is not None:
        part = FeedForward(kept, (0, 1), torch.tensor([0.25, 1.0]), torch.tensor([-1.0, 2.0]))
    circuit = Circuit(
        heads=(HeadId(0, 1), HeadId(1, 2)),
        gates=torch.linspace(0, 1, TOTAL),
        scores=torch.linspace(-1, 1, TOTAL),
        model=lm.source.to_dict(),
        objective={"name": "in_place", "off_value": "zero", "positions": "last", "mlps": True},
        task={"family": "add_k", "options": {}},
        selection={"rule": "threshold", "value": 0.5},
        seed=3,
        metrics={"accuracy/full": 0.9, "accuracy/heads_only": 0.25},
        feed_forward=part,
    )
    return replace(circuit, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", [(1,), (), (0, 1)])
def test_it_survives_saving(kept: tuple[int, ...], tmp_path: Path) -> None:
    circuit = make(kept)
    loaded = Circuit.load(circuit.save(tmp_path / "c"))
    assert loaded.to_dict() == circuit.to_dict()
    assert loaded.mlps == kept
    assert loaded.feed_forward is not None
    assert circuit.feed_forward is not None
    assert torch.equal(loaded.feed_forward.gates, circuit.feed_forward.gates)
    assert torch.equal(loaded.feed_forward.scores, circuit.feed_forward.scores)
    assert not loaded.tensors
    assert json.loads((tmp_path / "c" / "circuit.json").read_text())["schema_version"] == 2


def test_without_feed_forward_gates_the_file_is_of_the_first_version(tmp_path: Path) -> None:
    folder = make(None).save(tmp_path / "c")
    written = json.loads((folder / "circuit.json").read_text())
    assert written["schema_version"] == 1
    assert not {"mlps", "mlp_layers"} & written.keys()
    loaded = Circuit.load(folder)
    assert loaded.mlps is None
    assert len(loaded.mask(tiny_lm("llama"))) == TOTAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlps": [2]}, "keeps layer 2"),
        ({"mlps": [1, 0]}, "'mlps' is not a rising list"),
        ({"mlps": "all"}, "'mlps' is not a rising list"),
        ({"mlp_layers": [0, 0]}, "'mlp_layers' is not a rising list"),
        ({"mlp_layers": None}, "'mlp_layers' is not a rising list"),
        ({"mlp_layers": [0, 1, 2]}, "'mlp_gates' as 3 floats, one per feed-forward block"),
    ],
)
def test_broken_files_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    folder = make().save(tmp_path / "c")
    written = json.loads((folder / "circuit.json").read_text())
    (folder / "circuit.json").write_text(json.dumps({**written, **change}))
    with pytest.raises(CircuitError, match=message):
        Circuit.load(folder)


def test_a_model_with_other_blocks_is_refused() -> None:
    part = FeedForward((0,), (0, 3), torch.ones(2), torch.ones(2))
    with pytest.raises(CircuitError, match=r"layers 0, 3; .* layers 0, 1"):
        replace(make(), feed_forward=part).check_model(tiny_lm("llama"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
@torch.no_grad()
def test_applying_closes_what_it_does_not_keep(family: str) -> None:
    lm, batch = tiny_lm(family), tiny_batch((5, 9, 3), answers=1)
    circuit = make(family=family)
    components = components_of(lm, True)
    gates = torch.zeros(TOTAL + LAYERS)
    gates[[1, HEADS + 2, TOTAL + 1]] = 1.0
    assert torch.equal(circuit.mask(lm), gates)
    with gate_components(lm, components, gates, columns=slice(-1, None)):
        expected = lm.logits(batch)
    with circuit.apply(lm):
        assert torch.equal(lm.logits(batch), expected)
    with make(None, family).apply(lm):
        assert not torch.equal(lm.logits(batch), expected)


@torch.no_grad()
def test_saved_off_values_are_applied(tmp_path: Path) -> None:
    lm, batch = tiny_lm("llama"), tiny_batch((5, 9, 3), answers=1)
    z = [torch.randn(10, HEADS, 8) for _ in range(LAYERS)]
    m = [torch.randn(10, 32) for _ in range(LAYERS)]
    tensors = {f"off/{i:03d}": mean for i, mean in enumerate(z)}
    tensors |= {f"off_mlp/{i:03d}": mean for i, mean in enumerate(m)}
    tensors["off/counts"] = torch.ones(10)
    objective = {"name": "in_place", "off_value": "mean", "positions": "last", "mlps": True}
    folder = make(tensors=tensors, objective=objective).save(tmp_path / "c")
    circuit = Circuit.load(folder)
    last = int(Role.LAST)
    off = OffValues([mean[last] for mean in z], [mean[last] for mean in m])
    at = slice(-1, None)
    with gate_components(lm, components_of(lm, True), circuit.mask(lm), off=off, columns=at):
        expected = lm.logits(batch)
    with circuit.apply(lm):
        assert torch.equal(lm.logits(batch), expected)


def test_comparing() -> None:
    overlap = compare(make((0, 1)), make((1,))).mlps
    assert overlap is not None
    assert [str(block) for block in overlap.shared] == ["L1MLP"]
    assert [str(block) for block in overlap.only_first] == ["L0MLP"]
    assert overlap.only_second == ()
    assert overlap.jaccard == 0.5
    assert compare(make(), make(None)).mlps is None


def test_exports_tell_of_blocks_or_say_that_they_do_not() -> None:
    circuit = make()
    for kind in ("heads", "headkv"):
        assert export_text(circuit, kind) == export_text(make(None), kind)
        assert left_out(circuit, kind) == (
            f"format={kind} holds heads only; feed-forward blocks of the circuit: L1MLP"
        )
        assert left_out(make(None), kind) is None
    nodes = json.loads(export_text(circuit, "mib"))["nodes"]
    assert nodes["m0"] == {"in_graph": False, "score": -1.0}
    assert nodes["m1"] == {"in_graph": True, "score": 2.0}
    assert json.loads(export_text(make(None), "mib"))["nodes"]["m0"] == {"in_graph": True}
    lines = export_text(circuit, "csv").splitlines()
    assert lines[-2:] == ["0,MLP,0.25,-1,0", "1,MLP,1,2,1"]
    assert len(lines) == 1 + TOTAL + LAYERS
    assert left_out(circuit, "csv") is None


def test_the_card_names_the_blocks_and_their_accuracies() -> None:
    card = circuit_card(make())
    assert "1 of 2 stay on (L1MLP)" in card
    assert "its heads, every feed-forward block off | 0.250" in card
    assert "feed-forward" not in circuit_card(make(None))
