"""A model placed by a device map does what the same model in one place does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")

from headloc import localize
from headloc.errors import HeadlocError
from headloc.lm import FrozenLM, gate_heads, load_lm
from headloc.lm.partial import starting_at, supports_partial
from headloc.lm.placement import check_device_map
from headloc.lm.projection import head_contributions
from headloc.objectives import FunctionVector, InPlace
from headloc.tasks import AddK
from tests.localizer.planted import LAYERS, OwnAnswers, planted_lm, small
from tests.tiny import tiny_batch

# The last layers and the output lie on disk, and are brought in when they run.
SPLIT = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.norm": "cpu",
    "model.layers.0": "cpu",
    **{f"model.layers.{layer}": "disk" for layer in range(1, LAYERS)},
    "lm_head": "disk",
}
MAPS: dict[str, Any] = {"one place": {"": "cpu"}, "auto": "auto", "split": SPLIT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    known = planted_lm()
    assert known.tokenizer is not None
    known.model.save_pretrained(place)
    known.tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module", params=MAPS)
def placed(request: pytest.FixtureRequest, folder: Path) -> FrozenLM:
    return load_lm(str(folder), device_map=MAPS[request.param], local_only=True)


@pytest.fixture(scope="module")
def whole(folder: Path) -> FrozenLM:
    return load_lm(str(folder), device="cpu", local_only=True)


def test_logits_gates_and_gradients_are_those_of_the_whole_model(
    placed: FrozenLM, whole: FrozenLM
) -> None:
    batch = tiny_batch((5, 9, 3))
    found = []
    for lm in (placed, whole):
        assert lm.device == torch.device("cpu")
        gates = torch.linspace(0, 1, lm.layout.total).requires_grad_()
        for prefix in (None, lm.kept_prefix(batch)):
            with gate_heads(lm, gates, columns=batch.predicting if prefix is None else None):
                logits = lm.logits(batch, prefix)
            (gradient,) = torch.autograd.grad(logits.float().logsumexp(-1).sum(), gates)
            found.append((logits.detach(), gradient))
    for one, other in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(one, other)


def test_weights_that_are_not_in_place_are_read(placed: FrozenLM, whole: FrozenLM) -> None:
    # The same model, wherever it lies: a circuit of one belongs to the other.
    assert placed.source.fingerprint == whole.source.fingerprint
    for position, layer in enumerate(whole.layout.layers):
        z = torch.randn(2, layer.heads, layer.width)
        torch.testing.assert_close(
            head_contributions(placed, position, z), head_contributions(whole, position, z)
        )


def test_starting_in_the_middle_leaves_the_placement_as_it_was(placed: FrozenLM) -> None:
    assert supports_partial(placed, 1)
    batch = tiny_batch()
    before = placed.logits(batch)
    stream = torch.randn(len(batch), batch.ids_BT.shape[1], placed.width)
    with starting_at(placed, 1, stream):
        placed.logits(batch)
    assert torch.equal(placed.logits(batch), before)


@pytest.mark.parametrize("objective", [InPlace("mean"), FunctionVector(prompts_per_task=8)])
def test_a_localization_on_a_split_model_finds_the_same_gates(
    objective: Any, folder: Path, whole: FrozenLM
) -> None:
    split = load_lm(str(folder), device_map=SPLIT, local_only=True)
    assert split.spread
    assert not whole.spread
    found = []
    for lm in (split, whole):
        run = localize(
            lm, OwnAnswers(planted_lm(), k_max=8), objective=copy.deepcopy(objective), seed=2,
            **small(trainer={"max_epochs": 2}),
        )  # fmt: skip
        found.append(run.circuit)
    torch.testing.assert_close(found[0].gates, found[1].gates, rtol=1e-5, atol=1e-6)
    assert found[0].heads == found[1].heads
    # Training has told the heads apart.
    assert found[0].gates.std() > 1e-3


def test_a_model_that_is_spread_is_refused_with_several_processes(folder: Path) -> None:
    split = load_lm(str(folder), device_map=SPLIT, local_only=True)
    with pytest.raises(HeadlocError, match="spreads one model over devices"):
        localize(split, AddK(shots=2), **small(trainer={"devices": 2}))


@pytest.mark.parametrize("device_map", ["everywhere", 3, ""])
def test_an_unknown_map_is_refused(device_map: object) -> None:
    with pytest.raises(HeadlocError, match=r"model\.device_map"):
        check_device_map(device_map)


def test_without_accelerate_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headloc.lm.placement.find_spec", lambda name: None)
    with pytest.raises(HeadlocError, match=r"headloc\[large\]"):
        check_device_map("auto")


def test_limits_of_memory_place_layers_on_disk(folder: Path) -> None:
    lm = load_lm(str(folder), device_map="auto", max_memory={"cpu": "80KB"}, local_only=True)
    assert "disk" in lm.model.hf_device_map.values()
