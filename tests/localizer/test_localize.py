"""The whole pipeline on a model whose task heads are known, and what it refuses."""

from __future__ import annotations

import logging
import math
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from headloc import localize
from headloc.errors import HeadlocError
from headloc.gates import (
    HardConcreteGates,
    HeadGates,
    L1Gates,
    PenaltySparsity,
    TargetSparsity,
    TopKGates,
)
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.run import Localization
from headloc.localizer.selection import Elbow, Kept, Threshold, TopN
from headloc.localizer.settings import VerdictSettings
from headloc.objectives import InPlace
from headloc.tasks import Pairs
from tests.localizer.planted import HEADS, LAYERS, PLANTED, OwnAnswers, planted_lm, small
from tests.tiny import hook_count

TOTAL = LAYERS * HEADS


def run(**changes: Any) -> Localization:
    lm = planted_lm()
    return localize(lm, OwnAnswers(lm), **small(**changes))


@pytest.mark.parametrize(
    ("gates", "selection"),
    [
        (HardConcreteGates(), Threshold()),
        (HardConcreteGates(), Kept()),
        (L1Gates(), Elbow()),
        (TopKGates(), Kept()),
        (TopKGates(), TopN(3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_gate_finds_the_planted_heads_and_no_other(gates: HeadGates, selection: Any) -> None:
    steady = {"optimizer": OptimizerSettings(lr=0.1), "sparsity": PenaltySparsity(0.2)}
    result = run(
        gates=gates,
        selection=selection,
        objective=InPlace("zero"),
        trainer={"max_epochs": 16},
        **(steady if isinstance(gates, L1Gates) else {}),
    )
    assert set(result.circuit.heads) <= set(PLANTED)
    assert len(result.circuit.heads) >= 2
    assert result.metrics["accuracy/full"] == 1.0
    assert result.metrics["accuracy/circuit"] >= 0.9
    assert result.metrics["accuracy/circuit"] > result.metrics["accuracy/random"] + 0.1
    assert result.metrics["accuracy/without_circuit"] < 0.9


@pytest.mark.parametrize(
    ("off_value", "positions", "loss"),
    [("mean", "last", "kl"), ("resample", "last", "cross_entropy"),
     ("mean", "all", "cross_entropy"), ("resample", "all", "kl")],
)  # fmt: skip
def test_they_are_found_with_every_objective(off_value: str, positions: str, loss: str) -> None:
    result = run(
        objective=InPlace(off_value, loss=loss, positions=positions), trainer={"max_epochs": 8}
    )
    assert set(result.circuit.heads) <= set(PLANTED)
    assert result.metrics["accuracy/circuit"] >= 0.9


def test_a_target_number_of_heads_is_reached() -> None:
    result = run(
        sparsity=TargetSparsity(3, multiplier_lr=0.5, warmup=0.3),
        objective=InPlace("zero"),
        optimizer=OptimizerSettings(lr=0.3),
        trainer={"max_epochs": 20},
    )
    assert set(result.circuit.heads) == set(PLANTED)
    assert result.metrics["heads/requested"] == 3
    assert result.metrics["heads/open_expected"] == pytest.approx(3, abs=1)


def test_the_greedy_reference_and_replicates_agree_with_the_circuit() -> None:
    result = run(
        objective=InPlace("zero"),
        verdict=VerdictSettings(random_sets=0, replicates=1, greedy=True, greedy_share=1.0),
    )
    assert result.greedy is not None
    assert set(result.greedy) <= set(PLANTED)
    assert len(result.replicates) == 1
    for circuit in result.replicates:
        assert set(circuit.heads) <= set(PLANTED)
    seeds = {circuit.seed for circuit in result.replicates}
    assert len(seeds | {result.circuit.seed}) == 2
    assert 0 < result.metrics["stability/jaccard/smallest"] <= result.metrics["stability/jaccard"]
    assert result.metrics["greedy/heads"] == len(result.greedy)
    assert "accuracy/random" not in result.metrics


@pytest.fixture(scope="module")
def result() -> Localization:
    return run(verdict=VerdictSettings(random_sets=2), seed=4)


def test_the_metrics_that_scripts_rely_on_are_there(result: Localization) -> None:
    for key in ("accuracy/full", "accuracy/circuit", "accuracy/off", "faithfulness"):
        for name in (key, f"held_out/{key}"):
            figures = [result.metrics[f"{name}{part}"] for part in ("/low", "", "/high")]
            assert figures == sorted(figures)
            assert result.metrics[f"{name}/n"] == 48
    assert result.metrics["heads/count"] == len(result.circuit.heads)
    assert result.metrics["heads/total"] == TOTAL
    assert result.metrics["seed"] == 4
    assert result.metrics["time/seconds"] > 0
    assert all(math.isfinite(value) for value in result.metrics.values())


def test_faithfulness_follows_from_the_outcomes(result: Localization) -> None:
    for name, prefix in (("seen", ""), ("held_out", "held_out/")):
        outcomes = result.verdicts[name].outcomes
        full, circuit, off = (outcomes[c][0].correct.mean() for c in ("full", "circuit", "off"))
        assert result.metrics[f"{prefix}accuracy/circuit"] == pytest.approx(circuit)
        assert result.metrics[f"{prefix}faithfulness"] == pytest.approx(
            (circuit - off) / (full - off)
        )


def test_the_held_out_verdict_is_on_held_out_tasks(result: Localization) -> None:
    task = OwnAnswers(planted_lm())
    seen = {example.task for example in result.verdicts["seen"].prompts.examples}
    held_out = {example.task for example in result.verdicts["held_out"].prompts.examples}
    assert seen <= set(task.train)
    assert held_out <= set(task.held_out)
    assert not seen & held_out


def test_the_ledger_tells_the_cost_of_every_stage(result: Localization) -> None:
    tokens = result.ledger.prompt_tokens
    trained = 12 * 128
    train = result.ledger.stages["train"]
    # Every epoch runs one token of 128 prompts with gradient, and of 48 without.
    assert train.backward_tokens == trained
    assert train.forward_tokens == trained + 12 * 48
    assert result.metrics["cost/train"] == pytest.approx((3 * trained + 12 * 48) / tokens)
    total = sum(v for k, v in result.metrics.items() if k.startswith("cost/") and "_" not in k)
    assert result.metrics["cost/forward_equivalents"] == pytest.approx(total)


def test_the_history_has_one_entry_an_epoch_and_averages_the_last(result: Localization) -> None:
    history = result.history
    assert len(history.values) == len(history.scores) == 12
    for name, curve in history.curves.items():
        assert len(curve) == 12
        assert all(math.isfinite(value) for value in curve), name
    values, scores = history.averaged(3)
    torch.testing.assert_close(values, sum(history.values[-3:]) / 3)
    torch.testing.assert_close(scores, sum(history.scores[-3:]) / 3)
    torch.testing.assert_close(history.averaged(99)[0], sum(history.values) / 12)
    assert torch.equal(result.circuit.gates, values)


def test_the_model_is_left_as_it_was() -> None:
    lm = planted_lm()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    hooks = hook_count(lm)
    run(trainer={"max_epochs": 2})
    for name, value in lm.state_dict().items():
        assert torch.equal(value, before[name]), name
    for parameter in lm.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert hook_count(lm) == hooks
    assert not lm.model.training


def test_nothing_is_written_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(trainer={"max_epochs": 1})
    assert list(tmp_path.iterdir()) == []


@contextmanager
def no_stage(name: str) -> Any:
    raise AssertionError(f"work was begun: {name}")
    yield


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": TargetSparsity(13)}, "more than the 12 heads"),
        ({"selection": TopN(13)}, "more than the 12 heads"),
        ({"gates": TopKGates(budget_low=20)}, "at most the 12 heads"),
        ({"trainer": {"max_epochs": 0}}, "max_epochs=0"),
        ({"trainer": {"max_epochs": -1}}, "max_epochs=-1"),
        ({"trainer": {"accelerator": "abacus"}}, "Lightning refuses"),
        ({"trainer": {"epochs": 3}}, "Lightning refuses"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadlocError, match=message):
        run(**changes, stages=no_stage)


def test_a_task_without_enough_items_is_refused_before_any_work() -> None:
    task = Pairs(shots=5)
    task.shots = 500
    with pytest.raises(HeadlocError, match="500 shots"):
        localize(planted_lm(), task, **small(), stages=no_stage)


class Wrong(OwnAnswers):
    """A task that the model never gets right."""

    def _answered(self, examples: Any) -> list[Any]:
        return [replace(example, answer="1") for example in examples]


def test_a_model_that_answers_nothing_is_refused_clearly() -> None:
    lm = planted_lm()
    with pytest.raises(HeadlocError, match="answered none of 48 prompts") as caught:
        localize(lm, Wrong(lm), **small())
    assert "expected answer '1'" in str(caught.value)
    assert "->" in str(caught.value)


def test_training_that_ends_before_an_epoch_is_refused() -> None:
    with pytest.raises(HeadlocError, match="before its first epoch"):
        run(trainer={"max_epochs": 1, "max_steps": 0})


def test_gates_without_gradient_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="headloc"):
        run(
            gates=HardConcreteGates(init=40.0, init_std=0.0),
            sparsity=PenaltySparsity(0.0),
            trainer={"max_epochs": 1, "log_every_n_steps": 1},
        )
    assert "In 4 of the logged steps no gate had a gradient" in caplog.text


def test_a_target_out_of_reach_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="headloc"):
        run(
            sparsity=TargetSparsity(1, multiplier_lr=1e3, warmup=0.0),
            optimizer=OptimizerSettings(lr=1e-6),
            trainer={"max_epochs": 1},
        )
    assert "ran away" in caplog.text


def test_a_sound_run_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="headloc"):
        run(sparsity=TargetSparsity(3))
    assert caplog.text == ""


class Interrupt(L.Callback):
    """Press Ctrl-C at the start of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def test_an_interrupt_stays_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Interrupt(1)])
    assert signal.getsignal(signal.SIGINT) is before


def trained(seed: int, gates: HeadGates) -> Tensor:
    return run(seed=seed, gates=gates, trainer={"max_epochs": 2}).history.values[-1]


@pytest.mark.parametrize("gates", [HardConcreteGates(), L1Gates(), TopKGates()])
def test_the_same_seed_gives_the_same_gates_bit_for_bit(gates: HeadGates) -> None:
    first = trained(0, gates)
    assert torch.equal(first, trained(0, gates))
    assert not torch.equal(first, trained(1, gates))
