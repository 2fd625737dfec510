"""Subjects that classify words into labels: tiny random models, and the bundled one."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from headloc.analysis.base import Subject
from headloc.heads import HeadId
from headloc.lm.frozen import FrozenLM
from headloc.tasks import Labels
from tests.analysis.subjects import bundled_lm, circuit_of
from tests.tasks.zoo import word_level
from tests.tiny import tiny_model

DOUBLE = torch.float64


@cache
def label_lm(family: str, dtype: torch.dtype = DOUBLE) -> FrozenLM:
    """A random model whose tokenizer knows the shipped words and some labels."""
    task = Labels(shots=2)
    words = {d.input for name in (*task.train, *task.held_out) for d in task._pairs(name, "all")}
    tokenizer = word_level((*sorted(words), "foo", "bar", "baz"), largest=1)
    model = tiny_model(family, dtype=dtype, vocab_size=len(tokenizer))
    return FrozenLM(model, tokenizer)


def label_subject(family: str = "llama", **options: Any) -> Subject:
    """A random model on labels with four demonstrations."""
    lm = label_lm(family)
    task = Labels(**{"shots": 4, **options})
    heads = (HeadId(0, 1), HeadId(1, 0), HeadId(1, 3))
    return Subject(circuit_of(lm, task, heads), lm, task, seed=5, mean_prompts=8)


@cache
def bundled_label_subject() -> Subject:
    """The bundled model with two heads of its later layers, found by nobody."""
    lm = bundled_lm()
    task = Labels(shots=4)
    last = lm.layout.layers[-1].layer
    heads = (HeadId(last, 0), HeadId(last, 1), HeadId(last, 2))
    return Subject(circuit_of(lm, task, heads), lm, task, seed=5, mean_prompts=8)
