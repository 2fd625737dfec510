"""Searches and read-outs against loops over single sets, and against the model's plain modules."""

from __future__ import annotations

import pytest
import torch

from headloc.baselines.greedy import GreedyBackward, GreedyForward
from headloc.baselines.log_increase import LogProbabilityIncrease
from headloc.evaluation.scoring import score
from headloc.randomness import stream
from headloc.tasks import encode_all, render
from tests.baselines.problems import TASK, problem

FLOAT = torch.float32
GREEDY = [GreedyForward(), GreedyBackward(), GreedyBackward(criterion="accuracy")]


@pytest.mark.parametrize("method", GREEDY, ids=["forward", "backward", "accuracy"])
def test_greedy_search_is_step_by_step_the_best_single_change(method: GreedyForward) -> None:
    """Against a loop that scores one set at a time."""
    of = problem("llama", "mean", FLOAT)

    def worth(heads: frozenset[int]) -> tuple[float, float]:
        gates_A = torch.zeros(of.total)
        gates_A[sorted(heads)] = 1.0
        alone = score(of.objective, of.lm, of.search, gates_A)
        log_p = float(alone.log_probability.mean())
        return (alone.accuracy, log_p) if method.criterion == "accuracy" else (0.0, log_p)

    everything = frozenset(range(of.total))
    order = method.find(of).order
    for step in range(of.total):
        if method.name == "greedy_forward":
            current, chosen = frozenset(order[:step]), frozenset(order[: step + 1])
            trials = [current | {head} for head in everything - current]
        else:
            current, chosen = (
                frozenset(order[: of.total - step]),
                frozenset(order[: of.total - step - 1]),
            )
            trials = [current - {head} for head in current]
        best, found = max(worth(own) for own in trials), worth(chosen)
        assert found[0] == best[0]
        assert found[1] == pytest.approx(best[1], abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_log_probability_increase_is_that_of_plain_modules(family: str) -> None:
    """Against the weights themselves: slices of the projection, the final norm, the unembedding."""
    of = problem(family, "mean", FLOAT)
    model, total = of.lm.model, torch.zeros(of.total, dtype=torch.float64)
    gpt2 = family == "gpt2"
    blocks = model.transformer.h if gpt2 else model.model.layers
    norm = model.transformer.ln_f if gpt2 else model.model.norm
    width = of.lm.layout.layers[0].width
    streams: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    handles = []
    for block in blocks:
        projection = block.attn.c_proj if gpt2 else block.self_attn.o_proj
        handles += [
            block.register_forward_pre_hook(lambda m, args: streams.append(args[0][0, -1])),
            projection.register_forward_pre_hook(lambda m, args: outputs.append(args[0][0, -1])),
        ]
    examples = TASK.draw(len(of.search), stream(2, "search"), split="train")
    encoded = encode_all(of.lm.tokenizer, [render(one, TASK.template) for one in examples])
    with torch.no_grad():
        for prompt in (item.prompt for item in encoded):
            streams.clear()
            outputs.clear()
            model(input_ids=torch.tensor([list(prompt.prompt_ids)]), use_cache=False)
            for head, place in enumerate(of.lm.layout):
                part = slice(place.head * width, (place.head + 1) * width)
                block = blocks[place.layer]
                own = block.attn.c_proj.weight if gpt2 else block.self_attn.o_proj.weight.T
                before = streams[place.layer]
                after = before + outputs[place.layer][part] @ own[part]
                log_p = [model.lm_head(norm(x)).double().log_softmax(-1)[prompt.answer_ids[0]]
                         for x in (before, after)]  # fmt: skip
                total[head] += (log_p[1] - log_p[0]) / len(examples)
    for handle in handles:
        handle.remove()
    found = LogProbabilityIncrease().find(of).scores
    torch.testing.assert_close(found, total.float(), rtol=1e-3, atol=1e-5)
    assert float(total.abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_the_log_probability_increase_is_not_rounded_to_half_precision(dtype: torch.dtype) -> None:
    """Streams and outputs of a model in half precision, read by its weights in float64."""
    of = problem("llama", "mean", dtype)
    model, width = of.lm.model, of.lm.layout.layers[0].width
    kept = {name: weight.clone() for name, weight in model.named_parameters()}
    streams: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    handles = []
    for block in model.model.layers:
        projection = block.self_attn.o_proj
        handles += [
            block.register_forward_pre_hook(lambda m, args: streams.append(args[0][:, 0].double())),
            projection.register_forward_pre_hook(
                lambda m, args: outputs.append(args[0][:, 0].double())
            ),
        ]
    assert of.search.prefix is not None
    with torch.no_grad():
        of.lm.logits(of.search.batch, of.search.prefix)
    for handle in handles:
        handle.remove()
    norm, head_VD = model.model.norm, model.lm_head.weight.double()
    first_B = of.search.batch.target_BJ[:, 0]

    def log_p(x_BD: torch.Tensor) -> torch.Tensor:
        scale = (x_BD.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        logits_BV = (norm.weight.double() * x_BD * scale) @ head_VD.T
        return logits_BV.log_softmax(-1).gather(1, first_B[:, None])[:, 0]

    expected = []
    for place in of.lm.layout:
        part = slice(place.head * width, (place.head + 1) * width)
        own = model.model.layers[place.layer].self_attn.o_proj.weight.double().T[part]
        x_BD, z_Bd = streams[place.layer], outputs[place.layer][:, part]
        expected.append(float((log_p(x_BD + z_Bd @ own) - log_p(x_BD)).mean()))
    found = LogProbabilityIncrease().find(of).scores
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    # The model is what it was, its own precision included.
    for name, weight in model.named_parameters():
        assert weight.dtype == dtype
        assert torch.equal(weight, kept[name])
