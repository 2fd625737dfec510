"""The LightningModule: what it saves, what it refuses to load, and how a run is resumed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from headloc import localize
from headloc.cli import config_dir
from headloc.errors import HeadlocError
from headloc.gates import (
    HardConcreteGates,
    HeadGates,
    L1Gates,
    PenaltySparsity,
    SparsityControl,
    TargetSparsity,
    TopKGates,
)
from headloc.localizer.data import EpochOrder, PromptRows
from headloc.localizer.history import GateHistory
from headloc.localizer.module import HeadLocalizer, OptimizerSettings
from headloc.localizer.run import Localization
from headloc.objectives import InPlace
from headloc.objectives.prompts import ROWS_PER_PASS
from headloc.randomness import stream
from tests.localizer.planted import OwnAnswers, planted_lm, small
from tests.localizer.test_localize import Interrupt

EPOCHS = 5


def module(gates: HeadGates | None = None, sparsity: SparsityControl | None = None, seed: int = 0):
    lm = planted_lm()
    task = OwnAnswers(lm)
    objective = InPlace("zero")
    examples = task.draw(8, stream(0, "module"), split="train")
    prompts = objective.prompt_set(lm, task, examples, seed=0, use="test")
    return HeadLocalizer(
        lm, objective, gates or HardConcreteGates(), sparsity or PenaltySparsity(), prompts,
        prompts, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gates", "parameter"),
    [
        (HardConcreteGates(), "gates.log_alpha"),
        (L1Gates(), "gates.coefficient"),
        (TopKGates(), "gates.score"),
    ],
)
def test_the_state_is_the_gates_alone(gates: HeadGates, parameter: str) -> None:
    assert set(module(gates).state_dict()) == {parameter}


def test_the_state_of_a_target_is_saved_with_the_gates() -> None:
    state = module(sparsity=TargetSparsity(3)).state_dict()
    assert set(state) == {"gates.log_alpha", "sparsity.first", "sparsity.second", "sparsity.gap"}
    assert sum(value.numel() * value.element_size() for value in state.values()) < 1024


def test_only_the_gates_are_trained() -> None:
    local = module()
    trainable = {name for name, value in local.named_parameters() if value.requires_grad}
    assert trainable == {"gates.log_alpha"}
    assert all(value.dtype == torch.float32 for value in local.gates.parameters())


def test_loading_is_strict_about_gates_and_does_not_ask_for_the_model() -> None:
    source, target = module(seed=1), module(seed=2, sparsity=TargetSparsity(3))
    state = source.state_dict()
    same = module(seed=3)
    same.load_state_dict(state, strict=True)
    assert torch.equal(same.gates.values(), source.gates.values())
    with pytest.raises(RuntimeError, match=r"gates\.log_alpha"):
        same.load_state_dict({}, strict=True)
    with pytest.raises(RuntimeError, match="bogus"):
        same.load_state_dict({**state, "bogus": torch.zeros(1)}, strict=True)
    with pytest.raises(RuntimeError, match=r"sparsity\.first"):
        target.load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match="size mismatch"):
        same.load_state_dict({"gates.log_alpha": torch.zeros(3)}, strict=True)


def checkpointing(folder: Path) -> ModelCheckpoint:
    """The checkpoint callback of the shipped configuration."""
    options = OmegaConf.load(config_dir() / "callbacks" / "default.yaml")
    shipped = OmegaConf.create({"output_dir": str(folder), "callbacks": options})
    return instantiate(shipped.callbacks.checkpoint)


def run(folder: Path, *callbacks: L.Callback, **options: Any) -> Localization:
    lm = planted_lm()
    return localize(
        lm,
        OwnAnswers(lm),
        callbacks=[checkpointing(folder), *callbacks],
        **small(trainer={"max_epochs": EPOCHS}, **options),
    )


@pytest.mark.parametrize(
    ("gates", "sparsity"),
    [(HardConcreteGates(), TargetSparsity(3)), (L1Gates(), PenaltySparsity())],
    ids=["hard_concrete", "l1"],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    gates: HeadGates, sparsity: SparsityControl, tmp_path: Path
) -> None:
    options = {"gates": gates, "sparsity": sparsity}
    whole = run(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", Interrupt(2), **options)
    checkpoint = tmp_path / "part" / "checkpoints" / "gates.ckpt"
    kept = torch.load(checkpoint, weights_only=True)
    assert kept["epoch"] == 1
    resumed = run(tmp_path / "part", resume_from=checkpoint, **options)
    assert len(resumed.history.values) == EPOCHS
    for epoch in range(EPOCHS):
        assert torch.equal(resumed.history.values[epoch], whole.history.values[epoch])
        assert torch.equal(resumed.history.scores[epoch], whole.history.scores[epoch])
    for name, curve in whole.history.curves.items():
        assert resumed.history.curves[name] == pytest.approx(curve, nan_ok=True)
    assert resumed.circuit.heads == whole.circuit.heads
    for name in ("accuracy/circuit", "log_probability/circuit", "faithfulness"):
        assert resumed.metrics[name] == whole.metrics[name]


def test_a_checkpoint_is_small_and_holds_no_pickled_code(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoints" / "gates.ckpt"
    assert [file.name for file in path.parent.iterdir()] == ["gates.ckpt"]
    assert path.stat().st_size < 32 * 1024
    content = torch.load(path, weights_only=True)
    assert set(content["state_dict"]) == {"gates.log_alpha"}


def test_a_checkpoint_of_other_gates_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoints" / "gates.ckpt"
    with pytest.raises(HeadlocError, match="does not fit"):
        run(tmp_path / "other", gates=L1Gates(), resume_from=path)


def test_the_history_averages_the_last_epochs_and_survives_saving() -> None:
    history = GateHistory()
    history.values = [torch.full((2,), float(n)) for n in range(5)]
    history.scores = [torch.full((2,), -float(n)) for n in range(5)]
    values, scores = history.averaged(3)
    assert values.tolist() == [3.0, 3.0]
    assert scores.tolist() == [-3.0, -3.0]
    again = GateHistory()
    again.load_state_dict(history.state_dict())
    history.values.append(torch.zeros(2))
    assert len(again.values) == 5
    assert torch.equal(again.averaged(1)[0], torch.full((2,), 4.0))


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": -1.0}, {"final_lr": 2.0}])
def test_optimizer_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(HeadlocError, match="optimizer"):
        OptimizerSettings(**options)


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order() -> None:
    order = EpochOrder(10, 3, seed=0, shuffle=True)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert [len(batch) for batch in first] == [3, 3, 3]
    assert len({row for batch in first for row in batch}) == 9
    assert first != second
    order.set_epoch(0)
    assert list(order) == first


def test_validation_sees_every_row_in_order() -> None:
    rows = PromptRows(10, ROWS_PER_PASS + 7, batch_size=3, seed=0)
    seen = [batch.tolist() for batch in rows.val_dataloader()]
    assert [len(batch) for batch in seen] == [ROWS_PER_PASS, 7]
    assert [row for batch in seen for row in batch] == list(range(ROWS_PER_PASS + 7))


def test_a_bootstrap_draws_rows_with_replacement_once_for_all_epochs() -> None:
    order = EpochOrder(200, 200, seed=0, shuffle=True, bootstrap=True)
    first = sorted(next(iter(order)))
    order.set_epoch(3)
    assert sorted(next(iter(order))) == first
    distinct = len(set(first)) / 200
    assert distinct == pytest.approx(1 - math.exp(-1), abs=0.08)


def test_a_batch_larger_than_the_data_is_cut_to_it() -> None:
    rows = PromptRows(5, 5, batch_size=128, seed=0)
    assert [len(batch) for batch in rows.train_dataloader()] == [5]
