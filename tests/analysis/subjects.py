"""Subjects for tests: a small tokenised model with a circuit, and the bundled model with one."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from headloc.analysis.base import Progress, Subject
from headloc.bundled import load_bundled
from headloc.circuit import Circuit
from headloc.heads import HeadId
from headloc.lm.frozen import FrozenLM
from headloc.tasks import AddK, TaskFamily
from tests.tasks.zoo import word_level
from tests.tiny import tiny_model


@cache
def tiny_lm_with_words(family: str = "llama") -> FrozenLM:
    """A random model whose tokenizer knows numbers as single tokens."""
    tokenizer = word_level()
    model = tiny_model(family, vocab_size=len(tokenizer))
    return FrozenLM(model, tokenizer)


@cache
def bundled_lm() -> FrozenLM:
    return load_bundled()


def circuit_of(lm: FrozenLM, task: TaskFamily, heads: tuple[HeadId, ...]) -> Circuit:
    """A circuit as any method might have found it."""
    gates = torch.zeros(lm.layout.total)
    gates[lm.layout.indices(heads)] = 1.0
    return Circuit(
        heads=heads,
        gates=gates,
        scores=gates.clone(),
        model=lm.source.to_dict(),
        objective={"name": "in_place", "off_value": "zero", "positions": "last"},
        task=task.describe(),
        selection={},
        seed=0,
    )


def tiny_subject(family: str = "llama", **options: Any) -> Subject:
    """A random model on add-k with fourteen offsets and three shots."""
    lm = tiny_lm_with_words(family)
    task = AddK(**{"k_max": 14, "x_max": 20, "shots": 3, **options})
    heads = (HeadId(0, 1), HeadId(1, 0), HeadId(1, 3))
    return Subject(circuit_of(lm, task, heads), lm, task, seed=5, mean_prompts=8)


def quiet(done: int, total: int) -> None:
    """A progress that is checked and not shown."""
    assert 0 < done <= total


_: Progress = quiet
