"""Prompts that lean, and a planted recency bias that position-free attention takes away."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from headloc.analysis.base import NotApplicable, Subject
from headloc.analysis.bias import Bias
from headloc.analysis.bias_design import (
    BALANCED,
    COMMONER,
    RARER,
    leaning_counts,
    order_patterns,
    ordered,
    pattern_name,
)
from headloc.lm.frozen import FrozenLM
from headloc.tasks import Labels
from tests.analysis.label_subjects import label_lm, label_subject
from tests.analysis.subjects import circuit_of, quiet, tiny_subject
from tests.tiny import tiny_model

DOUBLE = torch.float64


def _planted() -> Subject:
    """Heads that look at recent tokens and at nothing else, through ALiBi alone."""
    words = label_lm("llama")
    model = tiny_model("falcon_alibi", dtype=DOUBLE, vocab_size=len(words.tokenizer))
    with torch.no_grad():
        for block in model.transformer.h:
            fused = block.self_attention.query_key_value
            for tensor in (fused.weight, fused.bias):
                tensor.view(4, 3, 8, -1)[:, :2] = 0
        # Label tokens must not carry what stands before them.
        model.transformer.h[0].self_attention.dense.weight.zero_()
    lm = FrozenLM(model, words.tokenizer)
    task = Labels(shots=4)
    return Subject(circuit_of(lm, task, tuple(lm.layout)), lm, task, seed=5)


def test_position_free_attention_removes_a_planted_recency_bias() -> None:
    found = Bias(prompts=8, orders=3).run(_planted(), quiet).scalars
    assert found["spread_over_orders/nats/none"] > 1e-3
    assert abs(found["last_minus_first/nats/none"]) > 1e-3
    # Falcon's bias is bfloat16 of a float32 model's making: what is left is rounding.
    assert abs(found["spread_over_orders/nats/position_free/circuit"]) < 1e-6
    assert found["spread_over_orders/nats/position_free/circuit/reduction"] > 0.999
    assert found["spread_over_orders/nats/position_free/circuit/reduction/low"] > 0.99
    # Balanced prompts have no minority: the boost leaves orders as they are.
    boosted = found["spread_over_orders/nats/value_boost/circuit"]
    assert boosted == pytest.approx(found["spread_over_orders/nats/none"], rel=1e-9)
    assert found["majority_gap/nats/value_boost/circuit"] != found["majority_gap/nats/none"]


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_the_analysis_runs_on_other_families_and_reports_both_accuracies(family: str) -> None:
    found = Bias(prompts=2, orders=2, random_sets=1).run(label_subject(family), quiet)
    kinds = {row[3] for t in found.tables if t.name == "accuracy" for row in t.rows}
    assert kinds == {"full vocabulary", "within labels"}
    arms = {row[4] for t in found.tables if t.name == "reduction" for row in t.rows}
    assert arms == {"circuit", "random"}
    assert found.pictures[0].draw().axes


def test_one_label_becomes_rarer_and_nothing_else_changes() -> None:
    subject = label_subject("llama")
    examples = subject.examples(12, "test")
    found = leaning_counts(examples, 1, np.random.default_rng(0))
    assert found[BALANCED] == examples
    for drawn, rare, common in zip(examples, found[RARER], found[COMMONER], strict=True):
        for one, count in ((rare, 1), (common, 2)):
            shown = Counter(d.output for d in one.demonstrations)
            assert shown[drawn.answer] == count
            assert sum(shown.values()) == 3
            assert [d for d in drawn.demonstrations if d in one.demonstrations] == list(
                one.demonstrations
            )
            assert one.query == drawn.query
    with pytest.raises(NotApplicable, match="more than 2 times"):
        leaning_counts(examples, 2, np.random.default_rng(0))


def test_orders_hold_the_same_demonstrations_with_the_querys_label_last_and_first() -> None:
    patterns = order_patterns(2, 2, 4, np.random.default_rng(0))
    assert [pattern_name(p) for p in patterns[:2]] == ["ooqq", "qqoo"]
    assert len(set(patterns)) == 4
    assert len(order_patterns(1, 1, 6, np.random.default_rng(0))) == 2
    example = label_subject("llama").examples(1, "test")[0]
    for pattern in patterns:
        moved = ordered(example, pattern)
        assert sorted(map(str, moved.demonstrations)) == sorted(map(str, example.demonstrations))
        assert tuple(d.output == example.answer for d in moved.demonstrations) == pattern


def test_tasks_without_labels_are_refused() -> None:
    with pytest.raises(NotApplicable):
        Bias(prompts=2).run(tiny_subject(shots=4), quiet)
