"""How much of the few-shot ability a function vector restores on zero-shot prompts.

Raw task means of head contributions (Hu et al., arXiv 2505.05145, and section on baselines: Todd et
al., arXiv 2310.15213) are added to one layer's attention output of the bare query.

Shapes: B prompts, K tasks, L layers, H heads, D model width, Z = heads x head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from headloc.bundled.check_heads import Elimination, eliminate
from headloc.bundled.figures import Figure
from headloc.bundled.probes import (
    CachedPrompts,
    accuracy,
    answer_log_probability,
    contributions,
    gated,
    head_outputs,
    last_logits,
)
from headloc.bundled.prompts import Batch
from headloc.bundled.task_vectors import adding


@dataclass(frozen=True)
class TaskMeans:
    """Mean head outputs [K, L, Z] and mean head contributions [K, L, H, D] of every task."""

    outputs: Tensor
    contributions: Tensor


def task_means(model: LlamaForCausalLM, few_shot: Batch, tasks: int) -> TaskMeans:
    """Means over each task's prompts; ``few_shot`` holds the tasks one after another."""
    outputs_KLZ = head_outputs(model, few_shot.ids_BT).unflatten(0, (tasks, -1)).mean(dim=1)
    return TaskMeans(outputs_KLZ, contributions(model, outputs_KLZ))


class VectorTest:
    """Zero-shot prompts, tasks one after another, into which function vectors are added."""

    def __init__(self, model: LlamaForCausalLM, means: TaskMeans, zero_shot: Batch) -> None:
        self._model = model
        self._means = means
        self._batch = zero_shot
        self._rows = len(zero_shot.ids_BT) // len(means.contributions)

    def logits(self, gates_LH: Tensor, layer: int) -> Tensor:
        """Logits [B, V] with v_k = sum of the chosen heads' means added at ``layer``."""
        vectors_KD = torch.einsum("lh,klhD->kD", gates_LH, self._means.contributions)
        with adding(self._model, layer, vectors_KD.repeat_interleave(self._rows, dim=0)):
            return self._model(
                input_ids=self._batch.ids_BT, use_cache=False, logits_to_keep=1
            ).logits[:, -1]

    def accuracy(self, gates_LH: Tensor, layer: int) -> Figure:
        """Accuracy of a set of heads inserted at ``layer``."""
        return accuracy(self.logits(gates_LH, layer), self._batch.answers_B)

    def log_probability(self, gates_LH: Tensor, layer: int) -> float:
        """Mean log-probability of the answers."""
        logits_BV = self.logits(gates_LH, layer)
        return float(answer_log_probability(logits_BV, self._batch.answers_B).mean())


def layer_sets(layers: int, heads: int) -> dict[str, Tensor]:
    """All heads of one layer, and all heads up to one layer, [L, H] each."""
    sets = {}
    for layer in range(layers):
        sets[f"layer_{layer}"] = torch.zeros(layers, heads)
        sets[f"layer_{layer}"][layer] = 1.0
        sets[f"up_to_{layer}"] = torch.zeros(layers, heads)
        sets[f"up_to_{layer}"][: layer + 1] = 1.0
    return sets


def greedy_vector_heads(
    test: VectorTest, shape: tuple[int, int], layer: int, per_round: int = 1
) -> Elimination:
    """Heads in the order a function vector inserted at ``layer`` can do without them."""
    return eliminate(lambda gates_LH: test.log_probability(gates_LH, layer), shape, per_round)


def shuffle_labels(batch: Batch, shots: int, rng: torch.Generator) -> Batch:
    """Permute each prompt's labels so that none stays in place (plain template)."""
    positions = torch.arange(shots) * 4 + 3
    ids_BT = batch.ids_BT.clone()
    for row in ids_BT:
        labels_N = row[positions]
        for _ in range(1000):
            shuffled_N = labels_N[torch.randperm(shots, generator=rng)]
            if not (shuffled_N == labels_N).any():
                break
        row[positions] = shuffled_N
    return Batch(ids_BT, batch.next_BT, batch.weights_BT)


def indirect_effects(model: LlamaForCausalLM, means: TaskMeans, shuffled: Batch) -> Tensor:
    """Average indirect effect [L, H]: gain in p(answer) from one head's task mean.

    ``shuffled`` holds label-shuffled prompts, tasks one after another.
    """
    rows = len(shuffled.ids_BT) // len(means.outputs)
    base_BLZ = means.outputs.repeat_interleave(rows, dim=0)
    shape = (model.config.num_hidden_layers, model.config.num_attention_heads)
    prompts = CachedPrompts(model, shuffled)
    plain_B = answer_log_probability(prompts.logits(), shuffled.answers_B).exp()
    effects_LH = torch.zeros(shape)
    for layer in range(shape[0]):
        for head in range(shape[1]):
            gates_LH = torch.ones(shape)
            gates_LH[layer, head] = 0.0
            with gated(model, gates_LH, base_BLZ):
                changed_B = answer_log_probability(prompts.logits(), shuffled.answers_B).exp()
            effects_LH[layer, head] = (changed_B - plain_B).mean()
    return effects_LH


def top_heads(scores_LH: Tensor, count: int) -> Tensor:
    """The ``count`` highest-scored heads as a [L, H] set."""
    gates = torch.zeros(scores_LH.numel())
    gates[scores_LH.flatten().topk(count).indices] = 1.0
    return gates.view_as(scores_LH)


def few_shot_accuracy(model: LlamaForCausalLM, batch: Batch) -> Figure:
    """Accuracy of plain prompts."""
    return accuracy(last_logits(model, batch.ids_BT), batch.answers_B)
