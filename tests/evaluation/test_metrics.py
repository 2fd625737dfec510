"""Accuracy and log-probability against naive loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headloc.evaluation.metrics import (
    AnswerAccuracy,
    AnswerLogProbability,
    answer_log_probability,
    answered_correctly,
)
from headloc.lm.batch import IGNORE

ROWS, COLUMNS, WORDS = 40, 3, 4


def random_answers(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and targets with answers of one to three tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits_BJV = torch.randn(ROWS, COLUMNS, WORDS, generator=generator)
    target_BJ = torch.randint(0, WORDS, (ROWS, COLUMNS), generator=generator)
    length_B = torch.randint(1, COLUMNS + 1, (ROWS, 1), generator=generator)
    target_BJ[torch.arange(COLUMNS) >= length_B] = IGNORE
    return logits_BJV, target_BJ


def naive(logits_BJV: Tensor, target_BJ: Tensor) -> tuple[list[bool], list[float]]:
    correct, log_p = [], []
    for logits_JV, target_J in zip(logits_BJV.double(), target_BJ.tolist(), strict=True):
        right, total = True, 0.0
        for logits_V, token in zip(logits_JV, target_J, strict=True):
            if token == IGNORE:
                continue
            right = right and int(logits_V.argmax()) == token
            total += float(logits_V[token] - logits_V.exp().sum().log())
        correct.append(right)
        log_p.append(total)
    return correct, log_p


def test_each_prompt_is_scored_as_a_naive_loop_does() -> None:
    logits, target = random_answers()
    correct, log_p = naive(logits, target)
    assert 0 < sum(correct) < ROWS
    assert answered_correctly(logits, target).tolist() == correct
    torch.testing.assert_close(
        answer_log_probability(logits, target).double(), torch.tensor(log_p).double()
    )


def test_one_wrong_token_makes_the_answer_wrong() -> None:
    logits = torch.eye(3)[None]
    assert answered_correctly(logits, torch.tensor([[0, 1, 2]])).tolist() == [True]
    assert answered_correctly(logits, torch.tensor([[0, 2, 2]])).tolist() == [False]
    assert answered_correctly(logits, torch.tensor([[0, 1, IGNORE]])).tolist() == [True]


def test_log_probability_of_half_precision_logits_is_taken_in_float32() -> None:
    logits = torch.full((1, 1, 1000), 0.0, dtype=torch.bfloat16)
    value = answer_log_probability(logits, torch.tensor([[7]]))
    assert value.item() == pytest.approx(-6.907755, abs=1e-5)


@pytest.mark.parametrize("size", [1, 7, ROWS])
def test_metrics_do_not_depend_on_the_batches(size: int) -> None:
    logits, target = random_answers()
    correct, log_p = naive(logits, target)
    accuracy, log_probability = AnswerAccuracy(), AnswerLogProbability()
    for start in range(0, ROWS, size):
        part = slice(start, start + size)
        accuracy.update(logits[part], target[part])
        log_probability.update(logits[part], target[part])
    assert float(accuracy.compute()) == pytest.approx(sum(correct) / ROWS)
    assert float(log_probability.compute()) == pytest.approx(sum(log_p) / ROWS, rel=1e-5)
    accuracy.reset()
    accuracy.update(torch.eye(2)[None], torch.tensor([[0, 1]]))
    assert float(accuracy.compute()) == 1.0
