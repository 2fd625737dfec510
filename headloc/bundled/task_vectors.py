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
    heads_BZ: dict[int, Tensor],
    zero_shot_BZ: dict[int, Tensor],
    projections: dict[int, nn.Linear],
    prompts_per_task: int,
    mix: TaskVectorMix,
    head_width: int,
    rng: torch.Generator,
) -> Tensor:
    """Each prompt's task vector [B, D]: raw task means for most tasks, perturbed for some.

    Args:
        heads_BZ: few-shot head outputs of every source layer, tasks one after another (Z = H * d).
        zero_shot_BZ: head outputs of the bare prompts.
        projections: the attention output projections.
        prompts_per_task: rows of one task.
        mix: shares of single-layer, of centred and of perturbed tasks.
        head_width: width of one head's output.
        rng: generator of these choices.
    """
    tasks = len(next(iter(heads_BZ.values()))) // prompts_per_task
    centred_K1 = torch.rand(tasks, 1, generator=rng) < mix.centred_share
    perturbed_K1 = torch.rand(tasks, 1, generator=rng) < mix.perturbed_share
    share_KS = _source_shares(tasks, mix, rng)
    vectors = []
    for source, layer in enumerate(mix.sources):
        means_KZ = heads_BZ[layer].float().unflatten(0, (-1, prompts_per_task)).mean(dim=1)
        zero_Z = zero_shot_BZ[layer].float().mean(dim=0)
        means_KZ = means_KZ - torch.where(centred_K1, zero_Z, 0.0)
        heads = means_KZ.shape[1] // head_width
        scale_KH = _head_scales(perturbed_K1, heads, mix, rng) * share_KS[:, source, None]
        vectors.append(projections[layer](means_KZ * scale_KH.repeat_interleave(head_width, dim=1)))
    return torch.stack(vectors).sum(dim=0).repeat_interleave(prompts_per_task, dim=0)


def _source_shares(tasks: int, mix: TaskVectorMix, rng: torch.Generator) -> Tensor:
    """Ones and zeros [K, S]: all source layers, or one of them alone."""
    alone_K1 = torch.rand(tasks, 1, generator=rng) < mix.single_share
    chosen_K = torch.randint(len(mix.sources), (tasks,), generator=rng)
    one_KS = torch.nn.functional.one_hot(chosen_K, len(mix.sources)).float()
    return torch.where(alone_K1, one_KS, 1.0)


def _head_scales(
    perturbed_K1: Tensor, heads: int, mix: TaskVectorMix, rng: torch.Generator
) -> Tensor:
    shape = (len(perturbed_K1), heads)
    kept_KH = torch.rand(shape, generator=rng) >= mix.perturbed_drop
    spread_KH = 2 * torch.rand(shape, generator=rng) - 1
    return torch.where(perturbed_K1, kept_KH * (1 + mix.perturbed_scale * spread_KH), 1.0)
