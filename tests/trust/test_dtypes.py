"""Half and single precision stay within what their rounding allows (`tests/trust/dtypes.py`)."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from headloc import localize
from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.lm.frozen import FrozenLM
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives import InPlace
from tests.architectures.saving import QUICK, OwnNumbers, answering_lm
from tests.localizer.planted import small
from tests.trust.dtypes import DTYPES, FIGURES, MODELS, measured, name_of, subject, tolerance


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("model", MODELS)
def test_every_figure_stays_within_its_tolerance(model: str, dtype: torch.dtype) -> None:
    found = measured(model, dtype)
    for figure in FIGURES:
        allowed = tolerance(model, dtype, figure)
        assert found[figure] <= allowed, (figure, found[figure], allowed)
    # float64 is a reference that differs: nothing is compared with itself.
    assert found["logits"] > torch.finfo(dtype).eps / 8
    if dtype == torch.float32:
        assert found["answers"] == 0.0


def _heads(dtype: torch.dtype, seed: int = 0) -> set[HeadId]:
    own = subject("bundled", dtype)
    settings = small(
        data=DataSettings(96, 48, 8, 8, 32, batch_size=32),
        verdict=VerdictSettings(random_sets=0),
        trainer={"max_epochs": 4},
    )
    return set(localize(own.lm, own.task, seed=seed, **settings).circuit.heads)


def _jaccard(one: set[HeadId], other: set[HeadId]) -> float:
    return len(one & other) / len(one | other)


@pytest.mark.slow
def test_a_dtype_changes_the_circuit_less_than_a_seed_does() -> None:
    expected = _heads(torch.float64)
    assert _heads(torch.float32) == expected
    seeds = _jaccard(_heads(torch.float32, seed=1), expected)
    assert seeds < 1
    for dtype in (torch.bfloat16, torch.float16):
        assert _jaccard(_heads(dtype), expected) > seeds


def test_an_overflow_of_float16_is_an_error_and_not_a_result() -> None:
    known = answering_lm("llama")
    model = copy.deepcopy(known.model)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight *= 300
            layer.mlp.gate_proj.weight *= 30
            layer.mlp.down_proj.weight *= 10
    wide = FrozenLM(model, known.tokenizer)
    task = OwnNumbers(wide)
    settings = {**QUICK, "data": replace(QUICK["data"], batch_size=4)}
    half = FrozenLM(copy.deepcopy(model).to(torch.bfloat16), known.tokenizer)
    assert localize(half, task, objective=InPlace("mean"), **settings).metrics["accuracy/full"] > 0
    with pytest.raises(HeadlocError):
        localize(
            FrozenLM(copy.deepcopy(model).to(torch.float16), known.tokenizer),
            task,
            objective=InPlace("mean"),
            **settings,
        )
