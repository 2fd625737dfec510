"""The training loss of one step: next-token losses of each ability, and the task-vector loss.

Shapes: B prompts, T positions, S scored positions, V vocabulary, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from headloc.bundled.mixture import StepBatch
from headloc.bundled.prompts import Batch
from headloc.bundled.recipe import Recipe
from headloc.bundled.task_vectors import adding, output_projection, reading_heads, task_vectors


@dataclass(frozen=True)
class Scored:
    """Weighted mean loss of a batch, and how often the answer came out right."""

    loss: Tensor
    accuracy: float


def score(model: LlamaForCausalLM, batch: Batch) -> Scored:
    """Next-token loss at the weighted positions alone; no position is padded on the left."""
    hidden_BTD = model.model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
    chosen_BT = batch.weights_BT > 0
    logits_SV = model.lm_head(hidden_BTD[chosen_BT]).float()
    next_S, weights_S = batch.next_BT[chosen_BT], batch.weights_BT[chosen_BT]
    loss_S = functional.cross_entropy(logits_SV, next_S, reduction="none")
    answers_S = weights_S == 1.0
    right_S = (logits_SV.detach().argmax(dim=1) == next_S)[answers_S]
    return Scored((loss_S * weights_S).sum() / weights_S.sum(), float(right_S.float().mean()))


def step_losses(
    model: LlamaForCausalLM, batch: StepBatch, recipe: Recipe, rng: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The weighted total, and each part's loss and accuracy by name."""
    with reading_heads(model, recipe.task_vector.sources) as few_shot:
        parts = {"add_k": score(model, batch.add_k)}
    parts["instruction"] = score(model, batch.instruction)
    parts["labels"] = score(model, batch.labels)
    parts["facts"] = score(model, batch.facts)
    parts["dictionary"] = score(model, batch.dictionary)
    weights = vars(recipe.losses)
    total = torch.stack([weights[name] * part.loss for name, part in parts.items()]).sum()
    if recipe.task_vector.weight > 0 and batch.shots >= recipe.task_vector.min_shots:
        parts["task_vector"] = _task_vector_loss(model, batch, few_shot, recipe, rng)
        total = total + recipe.task_vector.weight * parts["task_vector"].loss
    record = {f"{name}/loss": float(part.loss.detach()) for name, part in parts.items()}
    return total, record | {f"{name}/accuracy": part.accuracy for name, part in parts.items()}


def _task_vector_loss(
    model: LlamaForCausalLM,
    batch: StepBatch,
    heads_BZ: dict[int, Tensor],
    recipe: Recipe,
    rng: torch.Generator,
) -> Scored:
    mix = recipe.task_vector
    with torch.no_grad(), reading_heads(model, mix.sources) as bare:
        model.model(input_ids=batch.zero_shot.ids_BT, use_cache=False)
    vectors_BD = task_vectors(
        heads_BZ,
        bare,
        {layer: output_projection(model, layer) for layer in mix.sources},
        recipe.add_k.prompts_per_task,
        mix,
        recipe.architecture.head_width,
        rng,
    )
    with adding(model, mix.layer, vectors_BD):
        return score(model, batch.zero_shot)
