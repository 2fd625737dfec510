"""The usual way to repeat a prompt, as the yardstick: one prompt, one edit, one full forward pass.

Every pair computes the same figures twice: by headloc's batched form, which prepares its prompts
and caches within the time that is measured, and by a plain loop over unpadded prompts without any
cache.  Means are estimated beforehand for both.  The loop scores the answer's tokens only and hooks
nothing but what it edits, so it is a careful loop and no straw man.

Shapes: N prompts, T columns of one prompt, J predicting columns, V vocabulary, A heads in flat
order, K tasks, H selected heads, C doses, G gate vectors, d head width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from headloc.baselines.aie import indirect_effects, shuffled_examples
from headloc.errors import HeadlocError
from headloc.evaluation.conditions import plan_conditions
from headloc.evaluation.subsets import SubsetScorer, every_subset
from headloc.evaluation.verdict import RANDOM, judge
from headloc.lm.batch import TokenBatch, collate
from headloc.lm.frozen import FrozenLM
from headloc.lm.taps import add_to_stream, gate_heads, replace_heads
from headloc.objectives import FunctionVector, InPlace
from headloc.objectives.task_means import estimate_task_means
from headloc.randomness import stream
from headloc.refinement.dose_scan import scan_doses
from headloc.refinement.injection import Insertion
from headloc.refinement.vectors import HeadVectors
from headloc.tasks import Example, TaskFamily, encode_all, render

T = TypeVar("T")
Form = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work both forms do.

    Attributes:
        aie_prompts: prompts per training task of activation patching; all heads are patched.
        scan_prompts: prompts of the dose scan.
        scan_heads: its heads.
        doses: its largest dose.
        subset_prompts: prompts that subsets are scored on.
        pool: heads that all subsets are tried of.
        control_prompts: prompts of the random controls.
        control_heads: heads of a control.
        random_sets: random sets of either kind.
        mean_prompts: prompts behind every mean.
    """

    aie_prompts: int = 1
    scan_prompts: int = 16
    scan_heads: int = 6
    doses: int = 20
    subset_prompts: int = 32
    pool: int = 6
    control_prompts: int = 48
    control_heads: int = 8
    random_sets: int = 20
    mean_prompts: int = 20


def pairs(
    lm: FrozenLM, task: TaskFamily, seed: int = 0, sizes: Sizes | None = None
) -> dict[str, tuple[Form, Form]]:
    """Return (headloc's form, one at a time) by name; either gives the same figures to rounding.

    Args:
        lm: the frozen model.
        task: a task family with few-shot prompts.
        seed: seed of prompts, means and controls.
        sizes: how much work; by default a few thousand (edit, prompt) pairs each.

    Returns:
        `activation_patching`: indirect effects [K, A] in probability.
        `dose_scan`: accuracies [H, C].
        `subset_search`: accuracy and mean log-probability of every subset of a pool, [2, G].
        `random_controls`: the same of random head sets, [2, G].
    """
    sizes = sizes or Sizes()
    in_place = InPlace("mean")
    in_place.prepare(lm, task, seed=seed, prompts=sizes.mean_prompts)
    return {
        "activation_patching": _patching(lm, task, seed, sizes),
        "dose_scan": _doses(lm, task, seed, sizes),
        "subset_search": _subsets(lm, task, in_place, seed, sizes),
        "random_controls": _controls(lm, task, in_place, seed, sizes),
    }


def _patching(lm: FrozenLM, task: TaskFamily, seed: int, sizes: Sizes) -> tuple[Form, Form]:
    means = estimate_task_means(lm, task, task.train, prompts=sizes.mean_prompts, seed=seed)
    n = sizes.aie_prompts

    def fast() -> Tensor:
        return indirect_effects(lm, task, means, seed=seed, prompts=n).effects_KA

    @torch.no_grad()
    def slow() -> Tensor:
        examples = shuffled_examples(task, seed=seed, prompts=n)
        rows = means.index([example.task for example in examples]).tolist()
        effects_KA = torch.zeros(len(task.train), lm.layout.total, dtype=torch.float64)
        for number, (prompt, row) in enumerate(zip(_each(lm, task, examples), rows, strict=True)):
            before = _first_probability(lm, prompt)
            for index, head in enumerate(lm.layout):
                position = [layer.layer for layer in lm.layout.layers].index(head.layer)
                value_d = means.z[position][row, head.head].to(lm.device)
                with replace_heads(lm, {head: value_d}, columns=_last(prompt)):
                    effects_KA[number // n, index] += _first_probability(lm, prompt) - before
        return effects_KA / n

    return fast, slow


def _doses(lm: FrozenLM, task: TaskFamily, seed: int, sizes: Sizes) -> tuple[Form, Form]:
    objective = FunctionVector(prompts_per_task=sizes.mean_prompts)
    objective.prepare(lm, task, seed=seed)
    vectors, where = HeadVectors.of(objective, lm), Insertion.of(objective, lm)
    heads = _spread(lm, sizes.scan_heads)
    examples = _draw(task, sizes.scan_prompts, seed, "doses")

    def fast() -> Tensor:
        prompts = objective.prompt_set(lm, task, examples, seed=seed, use="bench-doses")
        scan = scan_doses(lm, vectors, where, prompts, heads, doses=sizes.doses)
        return torch.from_numpy(scan.accuracy_HC)

    @torch.no_grad()
    def slow() -> Tensor:
        tasks = _known(objective.means).index([example.task for example in examples]).tolist()
        prompts = _each(lm, task, [example.zero_shot() for example in examples])
        correct_HC = torch.zeros(len(heads), sizes.doses + 1, dtype=torch.float64)
        for h, head in enumerate(heads):
            for dose in range(sizes.doses + 1):
                vector_KD = vectors.scaled(head, dose, heads)
                for prompt, row in zip(prompts, tasks, strict=True):
                    with add_to_stream(
                        lm,
                        where.layer,
                        vector_KD[row],
                        site=where.site,
                        columns=_last(prompt),
                    ):
                        correct_HC[h, dose] += _answered(lm, prompt)[0]
        return correct_HC / len(prompts)

    return fast, slow


def _subsets(
    lm: FrozenLM, task: TaskFamily, in_place: InPlace, seed: int, sizes: Sizes
) -> tuple[Form, Form]:
    examples = _draw(task, sizes.subset_prompts, seed, "subsets")
    gates_GA = every_subset(_spread(lm, sizes.pool), lm.layout.total)

    def fast() -> Tensor:
        prompts = in_place.prompt_set(lm, task, examples, seed=seed, use="bench-subsets")
        return torch.stack(SubsetScorer.of(in_place, lm, prompts)(gates_GA))

    def slow() -> Tensor:
        return _gated_one_by_one(lm, task, in_place, examples, gates_GA)

    return fast, slow


def _controls(
    lm: FrozenLM, task: TaskFamily, in_place: InPlace, seed: int, sizes: Sizes
) -> tuple[Form, Form]:
    examples = _draw(task, sizes.control_prompts, seed, "controls")
    heads, n = _spread(lm, sizes.control_heads), sizes.random_sets

    def fast() -> Tensor:
        prompts = in_place.prompt_set(lm, task, examples, seed=seed, use="bench-controls")
        verdict = judge(in_place, lm, prompts, heads, seed=seed, random_sets=n)
        found = [outcome for name in RANDOM for outcome in verdict.outcomes[name]]
        right = [outcome.accuracy for outcome in found]
        log_p = [float(outcome.log_probability.mean()) for outcome in found]
        return torch.tensor([right, log_p], dtype=torch.float64)

    def slow() -> Tensor:
        plan = plan_conditions(in_place.components(lm), heads, seed=seed, random_sets=n)
        masks = [mask for name in RANDOM for mask in plan[name] if mask is not None]
        return _gated_one_by_one(lm, task, in_place, examples, torch.stack(masks))

    return fast, slow


@torch.no_grad()
def _gated_one_by_one(
    lm: FrozenLM,
    task: TaskFamily,
    in_place: InPlace,
    examples: Sequence[Example],
    gates_GA: Tensor,
) -> Tensor:
    """Return accuracy and mean log-probability under every gate vector, [2, G]."""
    means = _known(in_place.means)
    prompts = _each(lm, task, examples)
    total_2G = torch.zeros(2, len(gates_GA), dtype=torch.float64)
    for g, gates_A in enumerate(gates_GA.to(lm.device)):
        for prompt in prompts:
            off = means.at(prompt.role_BT[:, prompt.predicting]).heads
            with gate_heads(lm, gates_A, off=off, columns=prompt.predicting):
                total_2G[:, g] += torch.tensor(_answered(lm, prompt), dtype=torch.float64)
    return total_2G / len(prompts)


def _each(lm: FrozenLM, task: TaskFamily, examples: Sequence[Example]) -> list[TokenBatch]:
    """Return every prompt as a batch of one row, unpadded."""
    encoded = encode_all(lm.tokenizer, [render(example, task.template) for example in examples])
    return [collate([item.prompt], lm.pad_id).to(lm.device) for item in encoded]


def _known(means: T | None) -> T:
    """Return the means of an objective.

    Raises:
        HeadlocError: when it is not prepared.
    """
    if means is None:
        raise HeadlocError("The means are missing: call prepare() first.")
    return means


def _draw(task: TaskFamily, n: int, seed: int, use: str) -> list[Example]:
    return task.draw(n, stream(seed, "bench", use), split="train", items="fit")


def _spread(lm: FrozenLM, heads: int) -> list[int]:
    """Return heads of all depths."""
    total = lm.layout.total
    return sorted({i * total // heads for i in range(min(heads, total))})


def _last(prompt: TokenBatch) -> slice:
    return slice(prompt.prompt_columns - 1, prompt.prompt_columns)


def _first_probability(lm: FrozenLM, prompt: TokenBatch) -> float:
    """Return p(first answer token) by a full pass."""
    p_V = lm.logits(prompt)[0, 0].float().softmax(-1)
    return float(p_V[prompt.target_BJ[0, 0]])


def _answered(lm: FrozenLM, prompt: TokenBatch) -> tuple[float, float]:
    """Return whether the whole answer is right, and its log-probability, by a full pass."""
    logits_JV = lm.logits(prompt)[0].float()
    target_J = prompt.target_BJ[0]
    log_p_J = logits_JV.log_softmax(-1).gather(1, target_J[:, None])[:, 0]
    return float((logits_JV.argmax(-1) == target_J).all()), float(log_p_J.sum())
