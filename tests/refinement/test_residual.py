"""The whole-residual task vector against bare hooks, one unpadded prompt at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from headloc.errors import TapError
from headloc.objectives import FunctionVector
from headloc.randomness import stream
from headloc.refinement.injection import last_column
from headloc.refinement.residual import best_layer, replacing_output, residual_means, score_residual
from tests.objectives.by_hand import LAYERS, ByHand, digit_lm, forced
from tests.objectives.test_from_means import TASK
from tests.refinement import planted

BLOCKS = {"llama": "model.layers.{}", "gpt2": "transformer.h.{}", "gpt_neox": "gpt_neox.layers.{}"}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
Hook = Callable[[Tensor], Tensor | None]


@torch.no_grad()
def run(hand: ByHand, ids: list[int], layer: int, act: Hook) -> Tensor:
    """Logits_TV of one prompt; `act` sees, and may replace, the stream_TD after a layer."""

    def after(module: object, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
        x_1TD = output[0] if isinstance(output, tuple) else output
        new = act(x_1TD[0])
        if new is None:
            return None
        return (new[None], *output[1:]) if isinstance(output, tuple) else new[None]

    block = hand.lm.model.get_submodule(BLOCKS[hand.family].format(layer))
    handle = block.register_forward_hook(after)
    try:
        return hand.lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("family", sorted(BLOCKS))
@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_stream_is_replaced_by_its_few_shot_mean(family: str, layer: int) -> None:
    lm = digit_lm(family)
    hand = ByHand(lm, family)
    theta_KLD = residual_means(lm, TASK, ["add_30", "add_1"], prompts=3, seed=6)
    rng = stream(6, "means", "residual", "add_1")
    seen: list[Tensor] = []
    for prompt in hand.encoded([TASK.example("add_1", rng, items="fit") for _ in range(3)], TASK):
        last = len(prompt.prompt_ids) - 1
        run(hand, list(prompt.prompt_ids), layer, lambda x, last=last: seen.append(x[last]))
    by_hand_D = torch.stack(seen).mean(0)
    torch.testing.assert_close(theta_KLD[1, layer], by_hand_D, **CLOSE)

    objective = FunctionVector(layer=1, prompts_per_task=1)
    objective.prepare(lm, TASK, seed=3)
    examples = TASK.draw(5, stream(8, "x"), split="train")
    prompts = objective.prompt_set(lm, TASK, examples, seed=0, use="x")
    vector_BD = by_hand_D.expand(5, -1)
    with (
        torch.no_grad(),
        replacing_output(lm, layer, vector_BD, columns=last_column(prompts)),
    ):
        logits_BJV = lm.logits(prompts.batch, prompts.prefix)
    for row, prompt in zip(
        logits_BJV, hand.encoded([e.zero_shot() for e in examples], TASK), strict=True
    ):
        last = len(prompt.prompt_ids) - 1

        def patched(x_TD: Tensor, last: int = last) -> Tensor:
            new = x_TD.clone()
            new[last] = by_hand_D
            return new

        expected = run(hand, forced(prompt), layer, patched)[last:]
        torch.testing.assert_close(row[: len(expected)], expected, **CLOSE)


def test_every_prompt_gets_the_vector_of_its_own_task() -> None:
    scorer, prompts = planted.scorer(), planted.contexts().zero_shot
    whole = score_residual(scorer.lm, prompts, scorer.theta_KLD, 2, rows_per_pass=5)
    assert prompts.task_rows is not None
    for n, k in enumerate(prompts.task_rows.tolist()):
        only = torch.zeros_like(scorer.theta_KLD)
        only[k] = scorer.theta_KLD[k]
        assert score_residual(scorer.lm, prompts, only, 2)[n] == whole[n]


def test_the_best_layer_is_the_one_with_the_best_accuracy() -> None:
    scorer, prompts = planted.scorer(), planted.contexts().zero_shot
    layer, accuracies = best_layer(scorer.lm, prompts, scorer.theta_KLD)
    assert accuracies[layer] == max(accuracies)
    assert accuracies == [
        score_residual(scorer.lm, prompts, scorer.theta_KLD, at).mean() for at in range(3)
    ]


def test_a_replacement_that_never_ran_is_an_error() -> None:
    lm = digit_lm("llama")
    with (
        pytest.raises(TapError),
        replacing_output(lm, 0, torch.zeros(1, lm.width), columns=slice(0, 1)),
    ):
        pass
