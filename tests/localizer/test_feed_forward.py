"""Localization with feed-forward gates on models in which it is known which blocks matter."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from headloc import localize
from headloc.bank.settings import PathSparsity
from headloc.errors import HeadlocError
from headloc.gates import HardConcreteGates, L1Gates, TargetSparsity, TopKGates
from headloc.lm.frozen import FrozenLM
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.run import Localization
from headloc.localizer.selection import Kept, Threshold, TopN
from headloc.localizer.settings import VerdictSettings
from headloc.objectives import FunctionVector, InPlace, Objective
from tests.localizer.planted import HEADS, LAYERS, PLANTED, OwnAnswers, planted_lm, small
from tests.tasks.zoo import word_level
from tests.tiny import hook_count, tiny_model

TOTAL = HEADS * LAYERS
NEEDED = 1


@cache
def with_blocks(alive: float) -> FrozenLM:
    """The planted model with every feed-forward block silent but one, which is `alive` times as
    strong as it was."""
    source = planted_lm()
    model = tiny_model("llama", vocab_size=len(source.tokenizer), num_hidden_layers=LAYERS)
    model.load_state_dict(source.model.state_dict())
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            block.mlp.down_proj.weight *= alive if layer == NEEDED else 0.0
    return FrozenLM(model, source.tokenizer)


def run(lm: FrozenLM, **changes: Any) -> Localization:
    return localize(lm, OwnAnswers(lm), **small(**changes))


@pytest.mark.parametrize(
    ("gates", "selection"),
    [
        (HardConcreteGates(mlps=True), Threshold()),
        (HardConcreteGates(mlps=True), Kept()),
        (TopKGates(mlps=True), Kept()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_needed_block_is_kept_and_silent_ones_are_not(gates: Any, selection: Any) -> None:
    lm = with_blocks(6.0)
    result = run(lm, gates=gates, selection=selection, objective=InPlace("zero"),
                 trainer={"max_epochs": 16})  # fmt: skip
    circuit, metrics = result.circuit, result.metrics
    assert circuit.mlps == (NEEDED,)
    assert set(circuit.heads) <= set(PLANTED)
    assert len(circuit.gates) == TOTAL
    assert circuit.feed_forward is not None
    assert circuit.feed_forward.layers == tuple(range(LAYERS))
    assert (metrics["mlps/count"], metrics["mlps/total"]) == (1, LAYERS)
    assert metrics["heads/count"] == len(circuit.heads)
    assert metrics["heads/total"] == TOTAL
    assert metrics["accuracy/circuit"] >= 0.9
    assert metrics["accuracy/heads_only"] < 0.6
    # The other blocks are silent: closing them changes nothing at all.
    assert metrics["accuracy/heads_open_mlps"] == metrics["accuracy/circuit"]
    assert metrics["accuracy/mlps_only"] < metrics["accuracy/circuit"]
    for name in ("heads_open_mlps", "heads_only", "mlps_only", "no_mlps"):
        assert metrics[f"accuracy/{name}/low"] <= metrics[f"accuracy/{name}"]
        assert metrics[f"accuracy/{name}/n"] == 48
    assert hook_count(lm.model) == 0


def test_where_heads_suffice_no_block_is_kept() -> None:
    lm = with_blocks(0.0)
    result = run(lm, gates=HardConcreteGates(mlps=True), selection=Kept(),
                 objective=InPlace("zero"), trainer={"max_epochs": 16})  # fmt: skip
    assert result.circuit.mlps == ()
    assert set(result.circuit.heads) <= set(PLANTED)
    assert result.metrics["accuracy/heads_only"] == result.metrics["accuracy/circuit"] >= 0.9
    assert result.metrics["accuracy/no_mlps"] == 1.0


def test_a_target_counts_heads_and_blocks_alike() -> None:
    lm = with_blocks(6.0)
    gates = HardConcreteGates(mlps=True)
    result = run(lm, gates=gates, objective=InPlace("zero"), sparsity=TargetSparsity(4))
    found = len(result.circuit.heads) + len(result.circuit.mlps or ())
    assert found == 4
    assert result.metrics["gates/requested"] == 4
    assert "heads/requested" not in result.metrics
    with pytest.raises(HeadlocError, match="more than the 15"):
        run(lm, gates=gates, sparsity=TargetSparsity(16))
    with pytest.raises(HeadlocError, match="more than the 15"):
        run(lm, gates=gates, selection=TopN(16))


@pytest.mark.parametrize("mlps", [False, True])
def test_a_path_and_its_replicates_take_blocks_in(mlps: bool) -> None:
    lm = with_blocks(6.0)
    result = run(
        lm,
        gates=HardConcreteGates(mlps=mlps),
        objective=InPlace("zero"),
        sparsity=PathSparsity([0.05, 0.2], seeds=2),
        verdict=VerdictSettings(random_sets=2),
    )
    assert result.path is not None
    assert len(result.path.ranking) == TOTAL + (LAYERS if mlps else 0)
    assert result.circuit.mlps == ((NEEDED,) if mlps else None)


def test_replicates_and_the_greedy_search() -> None:
    lm = with_blocks(6.0)
    result = run(
        lm,
        gates=HardConcreteGates(mlps=True),
        objective=InPlace("zero"),
        verdict=VerdictSettings(random_sets=2, replicates=1, greedy=True),
    )
    assert result.replicates[0].mlps is not None
    assert "L1MLP" in [str(name) for name in result.greedy or ()]
    assert result.metrics["greedy/mlps"] >= 1
    assert 0 <= result.metrics["greedy/jaccard"] <= 1


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize(
    "objective", [InPlace("mean"), FunctionVector(layer=1, prompts_per_task=6)],
    ids=lambda objective: objective.name,
)  # fmt: skip
def test_other_families_run_to_the_end(family: str, objective: Objective) -> None:
    tokenizer = word_level()
    lm = FrozenLM(tiny_model(family, vocab_size=len(tokenizer)), tokenizer)
    task = OwnAnswers(lm, k=[1, 5, 9], held_out_k=[9])
    result = localize(
        lm, task, objective=objective, gates=L1Gates(mlps=True),
        **small(trainer={"max_epochs": 2}, optimizer=OptimizerSettings(lr=0.05)),
    )  # fmt: skip
    assert result.circuit.mlps is not None
    assert result.circuit.objective["mlps"] is True
    assert "held_out/accuracy/heads_only" in result.metrics


def test_objectives_and_gates_must_agree() -> None:
    lm = planted_lm()
    with pytest.raises(HeadlocError, match=r"gates\.mlps=true"):
        run(lm, objective=InPlace(mlps=True), gates=HardConcreteGates())

    class HeadsAlone(InPlace):
        name = "heads_alone"
        takes_mlps = False

    with pytest.raises(HeadlocError, match="'heads_alone' gates attention heads only"):
        run(lm, objective=HeadsAlone(), gates=HardConcreteGates(mlps=True))


def test_gates_without_blocks_are_the_gates_of_before() -> None:
    """The first draws of a run do not depend on whether the option exists."""
    lm = planted_lm()
    one, two = (
        run(lm, gates=gates, objective=InPlace("zero"), trainer={"max_epochs": 2})
        for gates in (HardConcreteGates(), HardConcreteGates(mlps=False))
    )
    assert torch.equal(one.circuit.gates, two.circuit.gates)
    assert one.circuit.mlps is None
    assert not [key for key in one.metrics if "mlps" in key or "heads_only" in key]
