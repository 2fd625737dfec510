"""Objectives that gate feed-forward blocks, against bare hooks on one unpadded prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headloc.errors import CircuitError, HeadlocError
from headloc.lm.batch import Role
from headloc.objectives import FunctionVector, InPlace, Patch, PromptSet, rebuild_objective
from headloc.objectives.from_means import FromMeans
from headloc.randomness import stream
from headloc.tasks import AddK, Example
from tests.objectives.by_hand import (
    HEADS,
    LAYERS,
    PROJECTIONS,
    TOTAL,
    ByHand,
    add_k,
    digit_lm,
    forced,
    mixed_examples,
    number_lm,
    roles,
)
from tests.tiny import tiny_lm

BLOCKS = {
    "llama": "model.layers.{}.mlp",
    "qwen3": "model.layers.{}.mlp",
    "gemma2": "model.layers.{}.post_feedforward_layernorm",
    "gpt2": "transformer.h.{}.mlp",
    "gpt_neox": "gpt_neox.layers.{}.mlp",
    "falcon_new": "transformer.h.{}.mlp",
}
"""What each family adds to the residual stream, from the modelling code of transformers."""

GATES = TOTAL + LAYERS
SEED, PROMPTS, MEANS = 3, 4, 20
EVEN = {"x_min": 10, "x_max": 60, "k_max": 30}
TASK = add_k(k=[1, 9, 30], held_out_k=[9])
BlockEdit = Callable[[int, Tensor], Tensor]


def gates_for(rows: int, seed: int = 11) -> Tensor:
    """Gates [B, A + M] in [0, 1], a few of them exactly zero or one."""
    draw = torch.rand(rows, GATES, generator=torch.Generator().manual_seed(seed))
    return (draw * 1.4 - 0.2).clamp(0, 1)


@contextmanager
def hooked(hand: ByHand, edit: BlockEdit | None = None) -> Iterator[list[Tensor]]:
    """Collect every block's output m_TD before any edit; the first prompt only."""
    seen: list[Tensor] = []

    def hook(layer: int) -> Callable[..., Any]:
        def after(module: nn.Module, args: Any, output: Tensor) -> Any:
            seen.append(output[0].clone())
            return None if edit is None else edit(layer, output[0].clone())[None]

        return after

    modules = [BLOCKS[hand.family].format(layer) for layer in range(LAYERS)]
    handles = [
        hand.lm.model.get_submodule(name).register_forward_hook(hook(layer))
        for layer, name in enumerate(modules)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def outputs(hand: ByHand, ids: Sequence[int]) -> list[Tensor]:
    """m_TD of every block on one prompt."""
    with hooked(hand) as seen:
        hand.run(ids)
    return seen


def off_blocks(
    hand: ByHand, objective: InPlace, task: AddK, examples: Sequence[Example]
) -> list[list[Tensor] | None]:
    """Per example and block, what a closed block puts out at every token."""
    prompts = hand.encoded(examples, task)
    if objective.off_value == "zero":
        return [None] * len(prompts)
    if objective.off_value == "mean":
        drawn = task.draw(MEANS, stream(SEED, "means"), split="train", items="fit")
        kept: list[dict[int, list[Tensor]]] = [{} for _ in range(LAYERS)]
        for prompt in hand.encoded(drawn, task):
            for layer, m_TD in enumerate(outputs(hand, forced(prompt))):
                for role, m_D in zip(roles(prompt), m_TD, strict=True):
                    kept[layer].setdefault(role, []).append(m_D)
        tables = [{r: torch.stack(m).mean(0) for r, m in k.items()} for k in kept]
        nothing = tables[0][Role.LAST] * 0
        return [
            [torch.stack([table.get(r, nothing) for r in roles(p)]) for table in tables]
            for p in prompts
        ]
    rng = stream(SEED, "test", "counterfactual")
    others = hand.encoded([task.counterfactual(e, rng) for e in examples], task)
    found: list[list[Tensor] | None] = []
    for other, prompt in zip(others, prompts, strict=True):
        m = outputs(hand, [*other.prompt_ids, *prompt.answer_ids[:-1]])
        shift = len(other.prompt_ids) - len(prompt.prompt_ids)
        rows = (torch.arange(len(forced(prompt))) + shift).clamp(min=0)
        found.append([m_TD[rows] for m_TD in m])
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "falcon_new"])
@pytest.mark.parametrize(
    ("off_value", "positions"), list(product(("zero", "mean", "resample"), ("last", "all")))
)
def test_in_place_equals_the_intervention_by_hand(
    family: str, off_value: str, positions: str
) -> None:
    lm = digit_lm(family)
    task = add_k(**(EVEN if (off_value, positions) == ("resample", "all") else {}))
    objective, hand = InPlace(off_value, positions=positions, mlps=True), ByHand(lm, family)
    objective.prepare(lm, task, seed=SEED, prompts=MEANS)
    examples = mixed_examples(task)
    prompts = objective.prompt_set(lm, task, examples, seed=SEED, use="test")
    gates = gates_for(len(prompts))
    heads_off = hand.off_values(objective, task, examples, SEED, MEANS)
    blocks_off = off_blocks(hand, objective, task, examples)
    with torch.no_grad():
        logits = objective.logits(lm, prompts, slice(None), gates)
    rows = zip(prompts.encoded, gates, heads_off, blocks_off, logits, strict=True)
    for item, gates_G, head_off, block_off, row in rows:
        first = 0 if positions == "all" else len(item.prompt.prompt_ids) - 1

        def edit(
            layer: int,
            m_TD: Tensor,
            gates_G: Tensor = gates_G,
            off: list[Tensor] | None = block_off,
            first: int = first,
        ) -> Tensor:
            g = gates_G[TOTAL + layer]
            base = torch.zeros_like(m_TD) if off is None else off[layer]
            m_TD[first:] = g * m_TD[first:] + (1 - g) * base[first:]
            return m_TD

        with hooked(hand, edit):
            wanted = hand.gated(item.prompt, gates_G[:TOTAL], head_off, positions)
        torch.testing.assert_close(row[: len(wanted)], wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", sorted(PROJECTIONS))
@torch.no_grad()
def test_gates_of_one_are_the_untouched_model_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    lm, task = digit_lm(family, dtype), add_k()
    for off_value in ("zero", "mean", "resample"):
        objective = InPlace(off_value, mlps=True)
        objective.prepare(lm, task, seed=SEED, prompts=8)
        prompts = objective.prompt_set(lm, task, mixed_examples(task), seed=SEED, use="test")
        plain = objective.logits(lm, prompts, slice(None), None)
        ones = torch.ones(len(prompts), GATES)
        assert torch.equal(objective.logits(lm, prompts, slice(None), ones), plain)


@pytest.mark.parametrize("loss", ["cross_entropy", "kl"])
@pytest.mark.parametrize("off_value", ["zero", "mean", "resample"])
def test_branches_are_rows_of_their_own(off_value: str, loss: str) -> None:
    lm, task = digit_lm("llama"), add_k()
    objective = InPlace(off_value, loss=loss, mlps=True)
    objective.prepare(lm, task, seed=SEED, prompts=8)
    prompts = objective.prompt_set(lm, task, mixed_examples(task), seed=SEED, use="test")
    gates = torch.stack([gates_for(len(prompts), seed) for seed in (1, 2)], dim=1)
    gates.requires_grad_()
    together = objective.branched_losses(lm, prompts, slice(None), gates)
    alone = torch.stack([objective.loss(lm, prompts, slice(None), g) for g in gates.unbind(1)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    (first,) = torch.autograd.grad(together.sum(), gates)
    (second,) = torch.autograd.grad(alone.sum(), gates)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)
    assert (first[..., TOTAL:] != 0).any()


def mean_blocks(hand: ByHand, name: str, *, zero_shot: bool = False) -> list[Tensor]:
    """Per block, the mean output m_D at the last prompt token of a task."""
    rng = stream(SEED, "means", "zero_shot" if zero_shot else "few_shot", name)
    examples = [TASK.example(name, rng, items="fit") for _ in range(PROMPTS)]
    shown = [item.zero_shot() for item in examples] if zero_shot else examples
    total = [torch.zeros(()) for _ in range(LAYERS)]
    for prompt in hand.encoded(shown, TASK):
        m = outputs(hand, forced(prompt))
        last = len(prompt.prompt_ids) - 1
        total = [a + b[last] for a, b in zip(total, m, strict=True)]
    return [part / PROMPTS for part in total]


def prepared(objective: FromMeans, family: str) -> tuple[ByHand, list[Example], PromptSet]:
    lm = digit_lm(family)
    objective.prepare(lm, TASK, seed=SEED)
    examples = TASK.draw(4, stream(8, "x"), split="train")
    return ByHand(lm, family), examples, objective.prompt_set(lm, TASK, examples, seed=0, use="x")


@pytest.mark.parametrize("relative_to", ["none", "zero_shot"])
@pytest.mark.parametrize("off_value", ["zero", "mean"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "falcon_new"])
@torch.no_grad()
def test_block_means_join_the_function_vector(
    family: str, off_value: str, relative_to: str
) -> None:
    options: dict[str, Any] = {
        "layer": 1,
        "off_value": off_value,
        "relative_to": relative_to,
        "prompts_per_task": PROMPTS,
    }
    objective = FunctionVector(**options, mlps=True)
    heads = FunctionVector(**options)
    hand, examples, prompts = prepared(objective, family)
    heads.prepare(hand.lm, TASK, seed=SEED)
    gates = gates_for(len(examples))
    rows = prompts.task_rows
    assert rows is not None
    added = objective.vectors(gates, rows) - heads.vectors(gates[:, :TOTAL], rows)
    names = ("add_1", "add_30", "add_9")
    means = {name: torch.stack(mean_blocks(hand, name)) for name in names}
    if relative_to == "zero_shot":
        for name in names:
            means[name] = means[name] - torch.stack(mean_blocks(hand, name, zero_shot=True))
    off = (means["add_1"] + means["add_30"]) / 2 if off_value == "mean" else means["add_1"] * 0
    for gates_G, example, found in zip(gates, examples, added, strict=True):
        c_M1 = gates_G[TOTAL:, None]
        wanted = (c_M1 * means[example.task] + (1 - c_M1) * off).sum(0)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "falcon_new"])
@torch.no_grad()
def test_patched_blocks_equal_the_intervention_by_hand(family: str) -> None:
    objective = Patch(prompts_per_task=PROMPTS, mlps=True)
    hand, examples, prompts = prepared(objective, family)
    assert objective.means is not None
    gates = gates_for(len(examples))
    logits = objective.logits(hand.lm, prompts, slice(None), gates)
    for gates_G, example, row in zip(gates, examples, logits, strict=True):
        (prompt,) = hand.encoded([example.zero_shot()], TASK)
        last = len(prompt.prompt_ids) - 1
        means, task = mean_blocks(hand, example.task), objective.means.tasks.index(example.task)
        z_means = [z_KHd[task] for z_KHd in objective.means.z]

        def block(
            layer: int,
            m_TD: Tensor,
            c: Tensor = gates_G[TOTAL:],
            last: int = last,
            means: list[Tensor] = means,
        ) -> Tensor:
            m_TD[last] = (1 - c[layer]) * m_TD[last] + c[layer] * means[layer]
            return m_TD

        def head(
            layer: int,
            z_THd: Tensor,
            gates_G: Tensor = gates_G,
            last: int = last,
            z_means: list[Tensor] = z_means,
        ) -> Tensor:
            c_H1 = gates_G[layer * HEADS : (layer + 1) * HEADS, None]
            new = z_THd.clone()
            new[last] = (1 - c_H1) * z_THd[last] + c_H1 * z_means[layer]
            return new

        with hooked(hand, block):
            wanted = hand.run(forced(prompt), head)[0][last:]
        torch.testing.assert_close(row[: len(wanted)], wanted, rtol=1e-4, atol=1e-4)
    zeros = objective.logits(hand.lm, prompts, slice(None), torch.zeros(GATES))
    assert torch.equal(zeros, hand.lm.logits(prompts.batch, prompts.prefix))


def test_cached_means_tell_the_two_forms_apart(tmp_path: Path) -> None:
    lm = digit_lm("llama")
    options: dict[str, Any] = {"layer": 1, "prompts_per_task": PROMPTS, "cache_dir": str(tmp_path)}
    FunctionVector(**options).prepare(lm, TASK, seed=SEED)
    assert len(list(tmp_path.iterdir())) == 3
    first = FunctionVector(**options, mlps=True)
    first.prepare(lm, TASK, seed=SEED)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(stamps) == 6
    again = FunctionVector(**options, mlps=True)
    again.prepare(lm, TASK, seed=SEED)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
    assert first.means is not None
    assert again.means is not None
    for a, b in zip(first.means.mlps, again.means.mlps, strict=True):
        assert torch.equal(a, b)
    for path in stamps:
        path.write_bytes(path.read_bytes()[:40])
    broken = FunctionVector(**options, mlps=True)
    broken.prepare(lm, TASK, seed=SEED)
    assert broken.means is not None
    assert torch.equal(broken.means.mlps[1], first.means.mlps[1])


@pytest.mark.parametrize(
    "objective",
    [
        InPlace("mean", mlps=True),
        FunctionVector(layer=1, off_value="mean", prompts_per_task=PROMPTS, mlps=True),
        Patch(prompts_per_task=PROMPTS, mlps=True),
    ],
    ids=lambda objective: objective.name,
)
@torch.no_grad()
def test_saved_tensors_take_the_place_of_preparing(objective: Any) -> None:
    lm = digit_lm("llama")
    objective.prepare(lm, TASK, seed=SEED, prompts=8)
    examples = TASK.draw(3, stream(8, "x"), split="train")
    prompts = objective.prompt_set(lm, TASK, examples, seed=0, use="x")
    again = rebuild_objective(objective.describe())
    assert again.mlps
    again.load_tensors(objective.tensors(), lm, TASK)
    gates = gates_for(3)
    other = again.prompt_set(lm, TASK, examples, seed=0, use="x")
    assert torch.equal(
        again.logits(lm, other, slice(None), gates),
        objective.logits(lm, prompts, slice(None), gates),
    )
    heads = {name: t for name, t in objective.tensors().items() if "_mlp/" not in name}
    with pytest.raises(CircuitError, match="does not hold"):
        rebuild_objective(objective.describe()).load_tensors(heads, lm, TASK)


def test_an_objective_without_feed_forward_gates_says_nothing_of_them() -> None:
    for objective in (InPlace(), FunctionVector(), Patch()):
        assert "mlps" not in objective.describe()
        assert not objective.components(tiny_lm("llama")).mlps


def test_the_number_of_gates_must_fit() -> None:
    lm = number_lm("llama")
    task = add_k()
    for objective in (InPlace("zero", mlps=True), FunctionVector(layer=1, prompts_per_task=2)):
        objective.prepare(lm, task, seed=SEED, prompts=4)
        prompts = objective.prompt_set(lm, task, mixed_examples(task), seed=SEED, use="x")
        wrong = TOTAL if objective.mlps else GATES
        with pytest.raises(HeadlocError, match="fit"):
            objective.logits(lm, prompts, slice(None), torch.ones(wrong))
