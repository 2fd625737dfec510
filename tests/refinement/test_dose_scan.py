"""The scan against bare hooks, its cost against the ledger, and a head that is planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.lm.batch import IGNORE
from headloc.lm.ledger import TokenLedger
from headloc.objectives import FunctionVector, PromptSet
from headloc.objectives.from_means import FromMeans
from headloc.randomness import stream
from headloc.refinement.dose_scan import scan_cost, scan_doses
from headloc.refinement.injection import Insertion
from headloc.refinement.significance import assess
from headloc.refinement.vectors import HeadVectors
from headloc.tasks import Example
from tests.objectives.by_hand import HEADS, TOTAL, ByHand, digit_lm
from tests.objectives.test_from_means import (
    PROMPTS,
    TASK,
    added_by_hand,
    contribution,
    means_by_hand,
)

SELECTED = (1, 4, 6)
DOSES = 3


def prepared(objective: FromMeans, family: str) -> tuple[ByHand, list[Example], PromptSet]:
    lm = digit_lm(family)
    objective.prepare(lm, TASK, seed=3)
    examples = TASK.draw(4, stream(8, "x"), split="train")
    examples += TASK.draw(2, stream(8, "y"), split="held_out")
    return ByHand(lm, family), examples, objective.prompt_set(lm, TASK, examples, seed=0, use="x")


def contributions_by_hand(hand: ByHand) -> dict[str, list[Tensor]]:
    """Per task, what each head's mean adds to the stream, in flat order."""
    found = {}
    for name in ("add_1", "add_9", "add_30"):
        means = means_by_hand(hand, name)
        found[name] = [
            contribution(hand, *divmod(unit, HEADS), means[unit // HEADS][unit % HEADS])
            for unit in range(TOTAL)
        ]
    return found


def vector_by_hand(
    own: dict[str, list[Tensor]], task: str, unit: int, dose: int, off_value: str
) -> Tensor:
    """FV(c, h, k), term by term; add_9 is held out, so it has no part in the mean."""
    vector = dose * own[task][unit]
    for other in range(TOTAL):
        if other != unit and (other in SELECTED or off_value == "mean"):
            vector = vector + (own["add_1"][other] + own["add_30"][other]) / 2
    return vector


def said_by_hand(
    hand: ByHand, examples: list[Example], layer: int, off_value: str, columns: int
) -> Tensor:
    """The most likely tokens [H, C, N, J] under every head and dose."""
    own = contributions_by_hand(hand)
    said = torch.full((len(SELECTED), DOSES + 1, len(examples), columns), IGNORE)
    for h, unit in enumerate(SELECTED):
        for dose in range(DOSES + 1):
            for n, example in enumerate(examples):
                vector = vector_by_hand(own, example.task, unit, dose, off_value)
                tokens = added_by_hand(hand, example, layer, vector).argmax(-1)
                said[h, dose, n, : len(tokens)] = tokens
    return said


@pytest.mark.parametrize(
    ("family", "layer", "off_value"),
    [("llama", 1, "zero"), ("llama", 0, "mean"), ("gpt2", 1, "mean"), ("gpt2", 0, "zero")],
)
@torch.no_grad()
def test_the_scan_equals_bare_hooks_one_prompt_at_a_time(
    family: str, layer: int, off_value: str
) -> None:
    objective = FunctionVector(layer=layer, off_value=off_value, prompts_per_task=PROMPTS)
    hand, examples, prompts = prepared(objective, family)
    columns = prompts.batch.target_BJ.shape[1]
    said_HCNJ = said_by_hand(hand, examples, layer, off_value, columns)
    # The "right" answer of a prompt is what one head and dose say, another one for every prompt.
    flat_SNJ = said_HCNJ.flatten(0, 1)
    chosen = torch.tensor([(5 * n + 2) % len(flat_SNJ) for n in range(len(examples))])
    target_NJ = flat_SNJ[chosen, torch.arange(len(examples))]
    expected = ((said_HCNJ == target_NJ) | (target_NJ == IGNORE)).all(-1).numpy()
    assert 0 < expected.mean() < 1
    changed = replace(prompts, batch=replace(prompts.batch, target_BJ=target_NJ))
    vectors = HeadVectors.of(objective, hand.lm)
    where = Insertion.of(objective, hand.lm)
    for rows in (7, 512):
        scan = scan_doses(
            hand.lm, vectors, where, changed, SELECTED, doses=DOSES, rows_per_pass=rows
        )
        np.testing.assert_array_equal(scan.correct_HCN, expected)
    assert scan.heads == (HeadId(0, 1), HeadId(1, 0), HeadId(1, 2))


def test_the_vectors_of_sets_and_of_scaled_heads_agree_with_their_definitions() -> None:
    objective = FunctionVector(layer=1, prompts_per_task=PROMPTS)
    hand, examples, prompts = prepared(objective, "llama")
    vectors, own = HeadVectors.of(objective, hand.lm), contributions_by_hand(hand)
    assert prompts.task_rows is not None
    rows = dict(zip([e.task for e in examples], prompts.task_rows.tolist(), strict=True))
    close = {"rtol": 1e-4, "atol": 1e-5}
    for task, row in rows.items():
        by_hand = vector_by_hand(own, task, 4, 3, "zero")
        torch.testing.assert_close(vectors.scaled(4, 3, SELECTED)[row], by_hand, **close)
        mean_6 = (own["add_1"][6] + own["add_30"][6]) / 2
        by_hand = own[task][1] + own[task][4] + mean_6
        torch.testing.assert_close(vectors.among((1, 4), SELECTED)[row], by_hand, **close)
        torch.testing.assert_close(vectors.unit((1, 4))[row], own[task][1] + own[task][4], **close)
    mask_A = torch.zeros(TOTAL)
    mask_A[list(SELECTED)] = 1.0
    torch.testing.assert_close(
        vectors.unit(SELECTED)[prompts.task_rows],
        objective.vectors(mask_A, prompts.task_rows),
        **close,
    )


@pytest.mark.parametrize("layer", [0, 1])
def test_the_closed_form_is_what_the_ledger_counts(layer: int) -> None:
    objective = FunctionVector(layer=layer, prompts_per_task=1)
    hand, examples, prompts = prepared(objective, "llama")
    cost = scan_cost(
        heads=3,
        doses=DOSES,
        prompts=len(examples),
        prompt_columns=prompts.batch.prompt_columns,
        answer_columns=prompts.batch.target_BJ.shape[1],
        layer=layer,
        layers=2,
    )
    ledger = TokenLedger()
    vectors = HeadVectors.of(objective, hand.lm)
    with ledger.counting(hand.lm, "scan"):
        where = Insertion.of(objective, hand.lm)
        scan_doses(hand.lm, vectors, where, prompts, SELECTED, doses=DOSES)
    assert ledger.stages["scan"].forward_tokens == cost.scan_tokens
    assert ledger.stages["scan"].backward_tokens == 0
    assert cost.depth_share == (1.0 if layer == 0 else 0.5)


def test_llama_3_8b_is_within_reach() -> None:
    cost = scan_cost(heads=33, doses=20, prompts=512, prompt_columns=3, layer=10, layers=32)
    assert cost.scan_tokens == 354_816
    assert cost.setup_tokens == 1536
    assert cost.full_depth_tokens == 1536 + 354_816 * 22 / 32


@torch.no_grad()
def test_a_planted_head_is_found_alone() -> None:
    """One head's mean points at its task's answer; the others are small noise."""
    objective = FunctionVector(layer=1, site="layer_output", prompts_per_task=1)
    lm = digit_lm("llama")
    objective.prepare(lm, TASK, seed=3)
    examples = TASK.draw(40, stream(9, "planted"), split="train")
    prompts = objective.prompt_set(lm, TASK, examples, seed=0, use="x")
    assert prompts.task_rows is not None
    answers_K = torch.tensor([7, 50, 90])
    towards_KD = lm.model.lm_head.weight[answers_K] / lm.model.model.norm.weight
    size = towards_KD.norm(dim=1, keepdim=True)
    noise_KAD = torch.randn(3, TOTAL, lm.width, generator=torch.Generator().manual_seed(0))
    own_KAD = 0.05 * size[:, None] * noise_KAD / noise_KAD.norm(dim=2, keepdim=True)
    own_KAD[:, 4] = 3 * towards_KD
    vectors = HeadVectors(own_KAD, own_KAD[[0, 2]].mean(0), torch.zeros(TOTAL, lm.width))
    target = prompts.batch.target_BJ.clone()
    target[:] = IGNORE
    target[:, 0] = answers_K[prompts.task_rows]
    prompts = replace(prompts, batch=replace(prompts.batch, target_BJ=target))
    where = Insertion.of(objective, lm)
    result = assess(scan_doses(lm, vectors, where, prompts, SELECTED, doses=20), 0.9)
    assert result.significant == result.main == (HeadId(1, 0),)
    assert result.effect(HeadId(1, 0)).accuracy > 0.9


def test_a_scan_of_nothing_is_refused() -> None:
    objective = FunctionVector(layer=1, prompts_per_task=1)
    hand, _, prompts = prepared(objective, "llama")
    vectors, where = HeadVectors.of(objective, hand.lm), Insertion.of(objective, hand.lm)
    for selected, doses in (((), 3), ((1,), 0)):
        with pytest.raises(HeadlocError, match="dose above 0"):
            scan_doses(hand.lm, vectors, where, prompts, selected, doses=doses)
    with pytest.raises(HeadlocError, match="prepare"):
        HeadVectors.of(FunctionVector(), hand.lm)
