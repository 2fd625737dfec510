"""The verdict: every condition equals masks applied by hand, and controls are fair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headloc.evaluation.scoring import score
from headloc.evaluation.verdict import CONDITIONS, SplitVerdict, judge
from tests.evaluation.recording import answered_by_definition
from tests.objectives.by_hand import TOTAL, ByHand, add_k
from tests.tiny import HEADS, LAYERS

CHOSEN = (1, 2, 4)
SETS = 10
SEED = 3


def masks() -> dict[str, Tensor]:
    chosen = torch.zeros(TOTAL)
    chosen[list(CHOSEN)] = 1.0
    return {
        "full": torch.ones(TOTAL),
        "circuit": chosen,
        "without_circuit": 1 - chosen,
        "off": torch.zeros(TOTAL),
    }


@pytest.mark.parametrize("off_value", ["zero", "mean", "resample"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_conditions_equal_masks_applied_by_hand(family: str, off_value: str) -> None:
    lm, objective, prompts = answered_by_definition(family, off_value)
    verdict = judge(objective, lm, prompts, CHOSEN, seed=SEED, random_sets=0)
    hand = ByHand(lm, family)
    offs = hand.off_values(objective, add_k(), prompts.examples, SEED, 20)
    assert set(verdict.outcomes) == set(masks())
    found = set()
    for name, mask in masks().items():
        right, log_p = [], []
        for item, off, target in zip(
            prompts.encoded, offs, prompts.batch.target_BJ[:, 0].tolist(), strict=True
        ):
            logits = hand.gated(item.prompt, mask, off, "last")[0]
            right.append(int(logits.argmax()) == target)
            log_p.append(float(logits.log_softmax(-1)[target]))
        (outcome,) = verdict.outcomes[name]
        assert outcome.correct.tolist() == right
        assert outcome.log_probability == pytest.approx(log_p, abs=2e-4)
        assert verdict.accuracy(name).value == pytest.approx(sum(right) / len(right))
        found.add(outcome.accuracy)
    assert verdict.accuracy("full").value == 1.0
    assert len(found) > 1


def asked_by(seed: int, heads: tuple[int, ...] = CHOSEN) -> tuple[list[Tensor], SplitVerdict]:
    lm, objective, prompts = answered_by_definition("llama")
    verdict = judge(objective, lm, prompts, heads, seed=seed, random_sets=SETS)
    assert objective.asked[0] is None
    return [gates for gates in objective.asked if gates is not None], verdict


def controls(asked: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Random sets and layer-matched sets, in the order in which they are scored."""
    position = 3  # behind circuit, without_circuit and off
    return asked[position : position + SETS], asked[position + SETS : position + 2 * SETS]


def test_random_sets_have_the_size_and_layer_matched_ones_the_counts_per_layer() -> None:
    asked, verdict = asked_by(0)
    assert list(verdict.outcomes) == list(CONDITIONS)
    assert len(asked) == 2 + 2 * SETS + 1
    chosen = masks()["circuit"].view(LAYERS, HEADS).sum(1)
    anywhere, matched = controls(asked)
    for mask in [*anywhere, *matched]:
        assert set(mask.tolist()) <= {0.0, 1.0}
        assert mask.sum() == len(CHOSEN)
    for mask in matched:
        assert torch.equal(mask.view(LAYERS, HEADS).sum(1), chosen)
    assert any(not torch.equal(m.view(LAYERS, HEADS).sum(1), chosen) for m in anywhere)


def test_random_sets_differ_and_follow_from_the_seed() -> None:
    first, again, other = (controls(asked_by(seed)[0]) for seed in (0, 0, 1))
    for mine, same, another in zip(first, again, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, same, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(mine, another, strict=True))
        assert len({tuple(mask.tolist()) for mask in mine}) > SETS // 2


def test_random_accuracy_is_the_mean_over_sets_and_its_range_spans_them() -> None:
    _, verdict = asked_by(0)
    accuracies = [outcome.accuracy for outcome in verdict.outcomes["random"]]
    assert verdict.accuracy("random").value == pytest.approx(sum(accuracies) / SETS)
    assert verdict.random_range() == (min(accuracies), max(accuracies))
    metrics = verdict.to_metrics("held_out/")
    assert metrics["held_out/accuracy/random/smallest"] == min(accuracies)
    assert metrics["held_out/accuracy/random/largest"] == max(accuracies)


@pytest.mark.parametrize("heads", [(), tuple(range(TOTAL))])
def test_empty_and_full_circuits_are_judged(heads: tuple[int, ...]) -> None:
    _, verdict = asked_by(0, heads)
    same, opposite = ("off", "full") if not heads else ("full", "off")
    assert verdict.accuracy("circuit") == verdict.accuracy(same)
    assert verdict.accuracy("without_circuit") == verdict.accuracy(opposite)
    faithfulness = verdict.faithfulness("log_probability")
    assert faithfulness is not None
    assert faithfulness.value == pytest.approx(len(heads) / TOTAL, abs=1e-6)


def test_metrics_are_flat_finite_and_leave_out_what_is_undefined() -> None:
    lm, objective, prompts = answered_by_definition("llama")
    verdict = judge(objective, lm, prompts, CHOSEN, seed=0, random_sets=2)
    same = SplitVerdict(prompts, {**verdict.outcomes, "off": verdict.outcomes["full"]}, 0)
    assert "faithfulness" in verdict.to_metrics()
    assert not any(key.startswith("faithfulness") for key in same.to_metrics())
    kept = verdict.accuracy("circuit").value / verdict.accuracy("full").value
    assert verdict.to_metrics()["accuracy_kept"] == pytest.approx(kept)


def test_progress_counts_every_scored_pair() -> None:
    lm, objective, prompts = answered_by_definition("gpt2")
    seen: list[tuple[int, int]] = []
    judge(
        objective, lm, prompts, CHOSEN, seed=0, random_sets=2,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    pairs = len(prompts)
    assert seen == [(n * pairs, 8 * pairs) for n in (1, 2, 3, 4, 8)]


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_scores_do_not_depend_on_the_size_of_a_pass(rows: int) -> None:
    lm, objective, prompts = answered_by_definition("llama")
    gates = masks()["circuit"]
    whole, parts = (
        score(objective, lm, prompts, gates, rows_per_pass=size) for size in (256, rows)
    )
    assert parts.correct.tolist() == whole.correct.tolist()
    assert parts.predicted.tolist() == whole.predicted.tolist()
    assert parts.log_probability == pytest.approx(whole.log_probability, abs=1e-4)
    assert parts.predicted.shape == (len(prompts), 1)
