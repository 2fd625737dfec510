"""Function vectors inside the model: read a layer's head outputs, add a vector at a layer.

The function vector of a task is the sum over heads of the mean head contribution at the last
prompt token (Hu et al., arXiv 2505.05145; Todd et al., arXiv 2310.15213). It is added to the
attention output of one layer of a zero-shot prompt. Here both ends keep their gradient, because
training uses them as the task-vector prompting loss (arXiv 2501.09240).

Shapes: B prompts, T positions, H heads, d head width, D model width, K tasks, P prompts of a task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from headloc.bundled.recipe import TaskVectorMix


def attention(model: LlamaForCausalLM, layer: int) -> nn.Module:
    """The self-attention module of a layer."""
    module: nn.Module = model.model.layers[layer].self_attn
    return module


def output_projection(model: LlamaForCausalLM, layer: int) -> nn.Linear:
    """The attention output projection of a layer; its input is the heads' outputs side by side."""
    return cast(nn.Linear, attention(model, layer).get_submodule("o_proj"))


@contextmanager
def reading_heads(model: LlamaForCausalLM, layers: tuple[int, ...]) -> Iterator[dict[int, Tensor]]:
    """Collect the last token's head outputs z [B, H * d] of some layers, gradient kept."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[layer] = inputs[0][:, -1]

        return hook

    handles = [
        output_projection(model, layer).register_forward_pre_hook(keep(layer)) for layer in layers
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def adding(model: LlamaForCausalLM, layer: int, vector_BD: Tensor) -> Iterator[None]:
    """Add a vector to a layer's attention output at the last token of every prompt."""

    def hook(_: nn.Module, __: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Any, ...]:
        hidden_BTD = output[0]
        last_B1D = hidden_BTD[:, -1:] + vector_BD[:, None]
        return (torch.cat([hidden_BTD[:, :-1], last_B1D], dim=1), *output[1:])

    handle = attention(model, layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def task_vectors(
    heads_BZ: Tensor,
    zero_shot_BZ: Tensor,
    projection: nn.Linear,
    prompts_per_task: int,
    mix: TaskVectorMix,
    head_width: int,
    rng: torch.Generator,
) -> Tensor:
    """Each prompt's task vector [B, D]: raw task means for most tasks, perturbed for some.

    Args:
        heads_BZ: few-shot head outputs, tasks one after another (Z = H * d).
        zero_shot_BZ: head outputs of the bare prompts.
        projection: the attention output projection.
        prompts_per_task: rows of one task.
        mix: shares of centred and of perturbed tasks.
        head_width: width of one head's output.
        rng: generator of the perturbations.
    """
    means_KZ = heads_BZ.float().unflatten(0, (-1, prompts_per_task)).mean(dim=1)
    tasks, width = means_KZ.shape
    centred_K1 = torch.rand(tasks, 1, generator=rng) < mix.centred_share
    means_KZ = means_KZ - torch.where(centred_K1, zero_shot_BZ.float().mean(dim=0), 0.0)
    scale_KH = _head_scales(tasks, width // head_width, mix, rng)
    vectors_KD = projection(means_KZ * scale_KH.repeat_interleave(head_width, dim=1))
    return vectors_KD.repeat_interleave(prompts_per_task, dim=0)


def _head_scales(tasks: int, heads: int, mix: TaskVectorMix, rng: torch.Generator) -> Tensor:
    perturbed_K1 = torch.rand(tasks, 1, generator=rng) < mix.perturbed_share
    kept_KH = torch.rand(tasks, heads, generator=rng) >= mix.perturbed_drop
    spread_KH = 2 * torch.rand(tasks, heads, generator=rng) - 1
    return torch.where(perturbed_K1, kept_KH * (1 + mix.perturbed_scale * spread_KH), 1.0)
