"""Function vectors and patches against bare hooks, one unpadded prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headloc.errors import HeadlocError, TaskError
from headloc.lm.frozen import FrozenLM
from headloc.lm.partial import reading_stream, starting_at, supports_partial
from headloc.lm.projection import output_weights
from headloc.objectives import FunctionVector, Patch, PromptSet, rebuild_objective
from headloc.objectives.from_means import FromMeans
from headloc.objectives.task_means import estimate_task_means
from headloc.randomness import stream
from headloc.tasks import Example
from tests.objectives.by_hand import (
    HEADS,
    LAYERS,
    PROJECTIONS,
    TOTAL,
    ByHand,
    add_k,
    digit_lm,
    forced,
    random_gates,
)
from tests.tiny import FAMILIES, tiny_lm, tiny_model

TASK = add_k(k=[1, 9, 30], held_out_k=[9])
SEED, PROMPTS = 3, 4
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def means_by_hand(hand: ByHand, name: str, *, zero_shot: bool = False) -> list[Tensor]:
    """Per layer, the mean head output z_Hd at the last prompt token of a task."""
    rng = stream(SEED, "means", "zero_shot" if zero_shot else "few_shot", name)
    examples = [TASK.example(name, rng, items="fit") for _ in range(PROMPTS)]
    shown = [item.zero_shot() for item in examples] if zero_shot else examples
    total = [torch.zeros(()) for _ in range(LAYERS)]
    for prompt in hand.encoded(shown, TASK):
        _, z = hand.run(forced(prompt))
        total = [a + b[len(prompt.prompt_ids) - 1] for a, b in zip(total, z, strict=True)]
    return [part / PROMPTS for part in total]


def contribution(hand: ByHand, layer: int, head: int, z_d: Tensor) -> Tensor:
    """What one head adds to the stream: its output alone through the projection, without bias."""
    projection = hand.projection(layer)
    z_HD = torch.zeros(HEADS, len(z_d))
    z_HD[head] = z_d
    nothing = projection(torch.zeros(1, HEADS * len(z_d)))
    return (projection(z_HD.reshape(1, -1)) - nothing)[0]


@torch.no_grad()
def added_by_hand(hand: ByHand, example: Example, layer: int, vector_D: Tensor) -> Tensor:
    """Logits at the predicting positions of the zero-shot prompt with a vector added."""
    (prompt,) = hand.encoded([example.zero_shot()], TASK)
    last = len(prompt.prompt_ids) - 1
    name = PROJECTIONS[hand.family].format(layer).rpartition(".")[0]

    def after(module: object, args: object, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        changed = output[0].clone()
        changed[0, last] += vector_D
        return (changed, *output[1:])

    handle = hand.lm.model.get_submodule(name).register_forward_hook(after)
    try:
        ids = torch.tensor([list(forced(prompt))])
        return hand.lm.model(input_ids=ids, use_cache=False).logits[0, last:]
    finally:
        handle.remove()


def prepared(objective: FromMeans, family: str) -> tuple[ByHand, list[Example], PromptSet]:
    lm = digit_lm(family)
    objective.prepare(lm, TASK, seed=SEED)
    examples = TASK.draw(4, stream(8, "x"), split="train")
    examples += TASK.draw(2, stream(8, "y"), split="held_out")
    return ByHand(lm, family), examples, objective.prompt_set(lm, TASK, examples, seed=0, use="x")


def compare(logits_BJV: Tensor, expected: Sequence[Tensor]) -> None:
    for row, one in zip(logits_BJV, expected, strict=True):
        torch.testing.assert_close(row[: len(one)], one, **CLOSE)


@pytest.mark.parametrize("off_value", ["zero", "mean"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox", "falcon_new"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_function_vector_is_the_gated_sum_of_task_means(
    family: str, layer: int, off_value: str
) -> None:
    objective = FunctionVector(layer=layer, off_value=off_value, prompts_per_task=PROMPTS)
    hand, examples, prompts = prepared(objective, family)
    gates = random_gates(len(examples))
    means = {name: means_by_hand(hand, name) for name in ("add_1", "add_9", "add_30")}
    expected = []
    with torch.no_grad():
        for gates_A, example in zip(gates, examples, strict=True):
            vector = torch.zeros(hand.lm.width)
            for unit in range(TOTAL):
                at, head = divmod(unit, HEADS)
                own = contribution(hand, at, head, means[example.task][at][head])
                trained = [
                    contribution(hand, at, head, means[name][at][head])
                    for name in ("add_1", "add_30")
                ]
                off = torch.stack(trained).mean(0) if off_value == "mean" else 0.0 * own
                vector = vector + gates_A[unit] * own + (1 - gates_A[unit]) * off
            expected.append(added_by_hand(hand, example, layer, vector))
    compare(objective.logits(hand.lm, prompts, slice(None), gates), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_patch_replaces_head_outputs_of_the_zero_shot_prompt(family: str) -> None:
    objective = Patch(prompts_per_task=PROMPTS)
    hand, examples, prompts = prepared(objective, family)
    gates = random_gates(len(examples))
    expected = []
    for gates_A, example in zip(gates, examples, strict=True):
        (prompt,) = hand.encoded([example.zero_shot()], TASK)
        last, means = len(prompt.prompt_ids) - 1, means_by_hand(hand, example.task)

        def edit(
            layer: int,
            z_THd: Tensor,
            last: int = last,
            means: list[Tensor] = means,
            gates_A: Tensor = gates_A,
        ) -> Tensor:
            gate = gates_A[layer * HEADS : (layer + 1) * HEADS][:, None]
            new = z_THd.clone()
            new[last] = (1 - gate) * z_THd[last] + gate * means[layer]
            return new

        logits, _ = hand.run(forced(prompt), edit)
        expected.append(logits[last:])
    compare(objective.logits(hand.lm, prompts, slice(None), gates), expected)


def test_the_reference_is_the_few_shot_prompt_untouched() -> None:
    objective = FunctionVector(prompts_per_task=PROMPTS)
    hand, examples, prompts = prepared(objective, "llama")
    expected = []
    for prompt in hand.encoded(examples, TASK):
        logits, _ = hand.run(forced(prompt))
        expected.append(logits[len(prompt.prompt_ids) - 1 :])
    compare(objective.logits(hand.lm, prompts, slice(None), None), expected)


def test_gates_of_zero_leave_the_zero_shot_prompt_and_have_a_gradient() -> None:
    objective = FunctionVector(layer=1, prompts_per_task=PROMPTS)
    hand, examples, prompts = prepared(objective, "llama")
    expected = [added_by_hand(hand, example, 1, torch.zeros(hand.lm.width)) for example in examples]
    gates = torch.zeros(len(examples), TOTAL, requires_grad=True)
    compare(objective.logits(hand.lm, prompts, slice(None), gates).detach(), expected)
    objective.loss(hand.lm, prompts, slice(None), gates).backward()
    assert gates.grad is not None
    assert (gates.grad.abs().sum(0) > 0).all()


def test_means_relative_to_zero_shot_subtract_it() -> None:
    objective = FunctionVector(relative_to="zero_shot", prompts_per_task=PROMPTS)
    hand, _, _ = prepared(objective, "gpt2")
    assert objective.means is not None
    row = objective.means.index(["add_30"])[0]
    few, bare = (
        means_by_hand(hand, "add_30"),
        means_by_hand(hand, "add_30", zero_shot=True),
    )
    for z_KHd, a, b in zip(objective.means.z, few, bare, strict=True):
        torch.testing.assert_close(z_KHd[row], a - b, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_starting_above_the_insertion_point_equals_the_full_pass_where_the_probe_says_so(
    family: str,
) -> None:
    lm = tiny_lm(family)
    if not supports_partial(lm, 1):
        pytest.fail(f"{family} cannot start at a layer")
    ids = torch.tensor([[5, 9, 3, 7], [8, 2, 6, 4]])
    with torch.no_grad():
        with reading_stream(lm, 1) as seen:
            full = lm.model(input_ids=ids, use_cache=False).logits
        with starting_at(lm, 1, seen[0]):
            part = lm.model(input_ids=ids, use_cache=False).logits
    assert torch.equal(full, part)
    assert all("forward" not in vars(module) for module in lm.model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi3", "gpt_neox"])
def test_head_weights_add_up_to_the_projection(family: str) -> None:
    lm = tiny_lm(family)
    for position, layer in enumerate(lm.layout.layers):
        module = lm.model.get_submodule(lm.sites[position].projection)
        z = torch.randn(1, 1, layer.heads * layer.width)
        weight_HdD = output_weights(lm, position)
        by_head = torch.einsum("hd,hdm->m", z.view(layer.heads, layer.width), weight_HdD)
        bias = getattr(module, "bias", None)
        total = by_head if bias is None else by_head + bias
        torch.testing.assert_close(total, module(z)[0, 0], **CLOSE)


def test_cached_means_are_read_back_and_broken_ones_made_again(tmp_path: Path) -> None:
    lm = digit_lm("llama")
    options = {"prompts": PROMPTS, "seed": SEED, "cache": tmp_path}
    first = estimate_task_means(lm, TASK, ["add_1", "add_30"], **options)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    written = {path: path.stat().st_mtime_ns for path in files}
    again = estimate_task_means(lm, TASK, ["add_30", "add_1", "add_9"], **options)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in written.items())
    for a, b in zip(first.z, again.z, strict=True):
        assert torch.equal(a[[1, 0]], b[:2])
    files[0].write_bytes(b"broken")
    repaired = estimate_task_means(lm, TASK, ["add_1", "add_30"], **options)
    assert all(torch.equal(a, b) for a, b in zip(first.z, repaired.z, strict=True))
    other = estimate_task_means(lm, TASK, ["add_1"], **{**options, "seed": SEED + 1})
    assert not torch.equal(other.z[0][0], first.z[0][0])


@pytest.mark.parametrize(("depth", "layer"), [(2, 0), (6, 2), (7, 2), (9, 3)])
def test_a_vector_is_inserted_at_a_third_of_the_depth(depth: int, layer: int) -> None:
    lm = FrozenLM(tiny_model("llama", num_hidden_layers=depth))
    assert FunctionVector().insertion_layer(lm) == layer
    assert FunctionVector(layer=1).insertion_layer(lm) == 1


def test_an_insertion_layer_out_of_range_is_refused() -> None:
    with pytest.raises(HeadlocError, match=r"layers 0\.\.1"):
        FunctionVector(layer=2, prompts_per_task=1).prepare(digit_lm("llama"), TASK, seed=0)


def test_means_over_prompts_without_shots_are_refused() -> None:
    with pytest.raises(TaskError, match="few-shot"):
        FunctionVector().prepare(digit_lm("llama"), add_k(shots=0), seed=0)


@pytest.mark.parametrize(
    "options",
    [{"off_value": "resample"}, {"relative_to": "x"}, {"prompts_per_task": 0}, {"site": "mlp"}],
)
def test_bad_settings_are_refused(options: dict) -> None:
    with pytest.raises(HeadlocError):
        FunctionVector(**options)


@pytest.mark.parametrize("objective", [FunctionVector(layer=1, off_value="mean"), Patch()])
def test_a_description_rebuilds_the_objective(objective: FromMeans) -> None:
    assert rebuild_objective(objective.describe()).describe() == objective.describe()


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(HeadlocError, match="'patch'"):
        rebuild_objective({"name": "pach"})
