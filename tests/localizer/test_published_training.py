"""Training function-vector coefficients against the published recipe, written down again by hand.

Hu et al. 2025: cross entropy on zero-shot prompts with v = c^T G added behind the attention of one
layer; AdamW with lr 0.01, betas (0.9, 0.98) and no weight decay; after each step a soft threshold
by weight * lr and a clamp to [0, 1]; in the published code the L1 norm is in the loss as well.

Shapes: N prompts, A heads in flat order, K tasks, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from headloc import localize
from headloc.gates import L1Gates, PenaltySparsity
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.selection import Selection, TopN
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives import FunctionVector
from headloc.randomness import stream
from tests.localizer.carried import PLANTED, Constant, carried_lm

WEIGHT, RATE, EPOCHS, PROMPTS, LAYER, SEED = 0.3, 0.01, 5, 21, 1, 9


class Remembering(TopN):
    """A rule that keeps the gates that it was asked about."""

    def select(self, ranking: Any, accuracy: Callable[[Tensor], float], full: float) -> list[int]:
        """Keep the gates."""
        self.seen = ranking.gates
        return super().select(ranking, accuracy, full)


def by_headloc(double: bool, rule: Selection) -> tuple[FunctionVector, Any]:
    objective = FunctionVector(layer=LAYER, prompts_per_task=4)
    result = localize(
        carried_lm(),
        Constant(),
        objective=objective,
        gates=L1Gates(init_low=0.5, init_high=0.5, double=double),
        sparsity=PenaltySparsity(WEIGHT),
        selection=rule,
        optimizer=OptimizerSettings(lr=RATE, beta1=0.9, beta2=0.98, final_lr=1.0),
        # One batch an epoch, so that the order of the prompts plays no part.
        data=DataSettings(PROMPTS, 14, 14, 7, 7, batch_size=PROMPTS),
        verdict=VerdictSettings(random_sets=0, average_epochs=3),
        trainer={"max_epochs": EPOCHS, "accelerator": "cpu", "enable_progress_bar": False},
        seed=SEED,
    )
    return objective, result


def by_hand(contributions: dict[str, Tensor], double: bool) -> list[Tensor]:
    """The coefficients [A] after every step, by full passes over unpadded prompts."""
    lm, task = carried_lm(), Constant()
    tokenizer: Any = lm.tokenizer
    examples = task.draw(PROMPTS, stream(SEED, "train", "train"), split="train", items="fit")
    ids = torch.tensor([tokenizer(f"{example.query}->").input_ids for example in examples])
    answers_N = torch.tensor(tokenizer.convert_tokens_to_ids([e.answer for e in examples]))
    G_NAD = torch.stack([contributions[example.task] for example in examples])
    c_A = torch.full((lm.layout.total,), 0.5, requires_grad=True)
    optimizer = torch.optim.AdamW([c_A], lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    steps = []
    for _ in range(EPOCHS):

        def add(module: Any, args: Any, output: Any) -> Any:
            vector_ND = torch.einsum("a,nad->nd", c_A, G_NAD)
            changed = output[0].clone()
            changed[:, -1] += vector_ND
            return (changed, *output[1:])

        handle = lm.model.model.layers[LAYER].self_attn.register_forward_hook(add)
        logits_NV = lm.model(input_ids=ids, use_cache=False).logits[:, -1]
        handle.remove()
        loss = cross_entropy(logits_NV, answers_N)
        if double:
            loss = loss + WEIGHT * c_A.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            shrunk = c_A.sign() * (c_A.abs() - WEIGHT * RATE).clamp(min=0.0)
            c_A.copy_(shrunk.clamp(0.0, 1.0))
        steps.append(c_A.detach().clone())
    return steps


@pytest.mark.parametrize("double", [False, True])
def test_every_step_is_the_published_one(double: bool) -> None:
    rule = Remembering(3)
    objective, result = by_headloc(double, rule)
    assert objective.means is not None
    G_KAD = objective.means.contributions(carried_lm())
    steps = by_hand(dict(zip(objective.means.tasks, G_KAD, strict=True)), double)
    assert len(result.history.values) == EPOCHS
    for found, expected in zip(result.history.values, steps, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # The heads are read off the mean of the last three checkpoints, and not off the last.
    mean_A = torch.stack(steps[-3:]).mean(0)
    torch.testing.assert_close(rule.seen, mean_A, rtol=1e-4, atol=1e-5)
    assert (mean_A - steps[-1]).abs().max() > 1e-3
    assert result.circuit.heads == PLANTED
    # The verdict gives the chosen heads coefficients of one, whatever training left them at.
    assert float(result.circuit.gates.max()) < 0.7
    assert result.metrics["accuracy/circuit"] == 1.0


def test_the_double_norm_shrinks_more() -> None:
    single, double = (by_headloc(switch, TopN(3))[1].history.values[-1] for switch in (0, 1))
    others = [i for i in range(len(single)) if carried_lm().layout.head(i) not in PLANTED]
    assert (double <= single + 1e-6).all()
    assert float(double[others].sum()) < float(single[others].sum())


def test_a_training_step_runs_nothing_below_the_insertion_point() -> None:
    lm, objective = carried_lm(), FunctionVector(layer=2, prompts_per_task=2)
    objective.prepare(lm, Constant(), seed=0)
    examples = Constant().draw(6, stream(0, "x"), split="train")
    prompts = objective.prompt_set(lm, Constant(), examples, seed=0, use="x")
    fired: list[int] = []
    handles = [
        block.self_attn.register_forward_hook(lambda *_, layer=layer: fired.append(layer))
        for layer, block in enumerate(lm.model.model.layers)
    ]
    gates_BA = torch.full((6, lm.layout.total), 0.5, requires_grad=True)
    objective.loss(lm, prompts, slice(None), gates_BA).backward()
    for handle in handles:
        handle.remove()
    assert fired == [2]
    assert gates_BA.grad is not None
    assert float(gates_BA.grad.abs().sum()) > 0
