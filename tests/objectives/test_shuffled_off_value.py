"""The off-value `shuffled`: head means over few-shot prompts whose labels are permuted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headloc.circuit import Circuit
from headloc.errors import TaskError
from headloc.lm.batch import Role
from headloc.objectives import FunctionVector, InPlace, rebuild_objective
from headloc.randomness import stream
from headloc.refinement.injection import Insertion
from headloc.refinement.vectors import HeadVectors
from tests.localizer.carried import Constant, carried_lm
from tests.objectives.by_hand import HEADS, TOTAL, ByHand, add_k, digit_lm, forced
from tests.objectives.test_from_means import CLOSE, PROMPTS, SEED, TASK, contribution


@torch.no_grad()
def shuffled_by_hand(hand: ByHand, task: str) -> list[torch.Tensor]:
    """Per layer z_Hd at the last token, averaged over the shuffled prompts of a task."""
    rng = stream(SEED, "means", "shuffled", task)
    examples = [TASK.example(task, rng, items="fit") for _ in range(PROMPTS)]
    changed = [TASK.shuffled(example, rng) for example in examples]
    for example, other in zip(examples, changed, strict=True):
        assert example.query == other.query
        assert example.demonstrations != other.demonstrations
    total: list[torch.Tensor] = []
    for prompt in hand.encoded(changed, TASK):
        _, outputs = hand.run(forced(prompt))
        last = [z_THd[len(prompt.prompt_ids) - 1] for z_THd in outputs]
        total = [a + b for a, b in zip(total, last, strict=True)] if total else last
    return [z_Hd / PROMPTS for z_Hd in total]


@torch.no_grad()
def test_closed_heads_add_their_shuffled_mean_to_the_vector() -> None:
    objective = FunctionVector(layer=1, off_value="shuffled", prompts_per_task=PROMPTS)
    lm = digit_lm("llama")
    objective.prepare(lm, TASK, seed=SEED)
    hand = ByHand(lm, "llama")
    means = [shuffled_by_hand(hand, task) for task in TASK.train]
    off_AD = torch.stack(
        [
            sum(contribution(hand, layer, head, z[layer][head]) for z in means) / len(means)
            for layer, head in (divmod(unit, HEADS) for unit in range(TOTAL))
        ]
    )
    rows = torch.tensor([0])
    torch.testing.assert_close(
        objective.vectors(torch.zeros(TOTAL), rows)[0], off_AD.sum(0), **CLOSE
    )
    gates = torch.zeros(TOTAL)
    gates[3] = 1.0
    own = objective.vectors(torch.ones(TOTAL), rows) - objective.vectors(1 - gates, rows)
    vectors = HeadVectors.of(objective, lm)
    torch.testing.assert_close(own[0], vectors.own_KAD[0, 3] - off_AD[3], **CLOSE)
    # The dose scan leaves heads that are not selected at the same off-value.
    torch.testing.assert_close(vectors.off_AD, off_AD, **CLOSE)
    torch.testing.assert_close(vectors.unit((3,))[0], objective.vectors(gates, rows)[0], **CLOSE)
    assert Insertion.of(objective, lm).layer == 1


def test_they_are_saved_with_a_circuit_and_read_back(tmp_path: Path) -> None:
    lm = digit_lm("llama")
    objective = FunctionVector(layer=1, off_value="shuffled", prompts_per_task=PROMPTS)
    objective.prepare(lm, TASK, seed=SEED)
    circuit = Circuit(
        heads=(lm.layout.head(0),),
        gates=torch.ones(TOTAL),
        scores=torch.ones(TOTAL),
        model=lm.source.to_dict(),
        objective=objective.describe(),
        task=TASK.describe(),
        selection={},
        seed=0,
        tensors=objective.tensors(),
    )
    loaded = Circuit.load(circuit.save(tmp_path / "c"))
    again = rebuild_objective(loaded.objective)
    again.load_tensors(loaded.tensors, lm, TASK)
    assert isinstance(again, FunctionVector)
    rows = torch.tensor([0, 1])
    gates = torch.rand(TOTAL, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.vectors(gates, rows), objective.vectors(gates, rows))


def test_relative_means_take_the_zero_shot_mean_off_the_off_values_too() -> None:
    lm = digit_lm("gpt2")
    raw = FunctionVector(layer=1, off_value="shuffled", prompts_per_task=PROMPTS)
    relative = FunctionVector(
        layer=1, off_value="shuffled", relative_to="zero_shot", prompts_per_task=PROMPTS
    )
    for objective in (raw, relative):
        objective.prepare(lm, TASK, seed=SEED)
    rows, gates = torch.tensor([0]), torch.zeros(TOTAL)
    gates[2] = 1.0

    def opening(objective: FunctionVector) -> torch.Tensor:
        return objective.vectors(gates, rows) - objective.vectors(0 * gates, rows)

    assert raw.off_contributions is not None
    assert relative.off_contributions is not None
    assert not torch.allclose(raw.off_contributions, relative.off_contributions)
    # What opening a head changes differs by its zero-shot mean minus the cross-task one.
    assert torch.isfinite(opening(relative)).all()


def test_in_place_closes_heads_to_their_mean_over_shuffled_prompts() -> None:
    lm, task = digit_lm("llama"), add_k(shots=3)
    plain, shuffled = InPlace("mean"), InPlace("shuffled")
    for objective in (plain, shuffled):
        objective.prepare(lm, task, seed=1, prompts=6)
    hand = ByHand(lm, "llama")
    examples = task.draw(6, stream(1, "means"), split="train", items="fit")
    rng = stream(1, "means", "shuffled")
    total = 0.0
    for prompt in hand.encoded([task.shuffled(example, rng) for example in examples], task):
        _, outputs = hand.run(forced(prompt))
        total = total + outputs[1][len(prompt.prompt_ids) - 1]
    assert shuffled.means is not None
    assert plain.means is not None
    found = shuffled.means.means[1][int(Role.LAST)]
    torch.testing.assert_close(found, total / 6, **CLOSE)
    assert not torch.allclose(found, plain.means.means[1][int(Role.LAST)])
    again = rebuild_objective(shuffled.describe())
    again.load_tensors(shuffled.tensors(), lm, task)
    prompts = [one.prompt_set(lm, task, examples, seed=0, use="x") for one in (shuffled, again)]
    gates = torch.zeros(TOTAL)
    first, second = (
        one.logits(lm, own, slice(None), gates)
        for one, own in zip((shuffled, again), prompts, strict=True)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "objective", [FunctionVector(off_value="shuffled", prompts_per_task=2), InPlace("shuffled")]
)
def test_labels_that_cannot_be_shuffled_are_told(objective: FunctionVector | InPlace) -> None:
    with pytest.raises(TaskError, match="cannot be shuffled"):
        objective.prepare(carried_lm(), Constant(), seed=0, prompts=4)
