"""Tools of the model's checks: last-token runs on a cached prefix, gated heads, accuracies.

Only the last token's heads are changed by these checks, so the prefix of every prompt is run once
and each variant costs one token per prompt.

Shapes: B prompts, T positions, L layers, H heads, d head width, Z = H * d, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from headloc.bundled.figures import Figure
from headloc.bundled.prompts import Batch
from headloc.bundled.task_vectors import output_projection, reading_heads

#: Prompts run at once: bounds memory, changes nothing else.
_CHUNK = 300


class CachedPrompts:
    """Prompts of one length whose prefix has been run; ``logits`` runs their last token."""

    def __init__(self, model: LlamaForCausalLM, batch: Batch) -> None:
        self.batch = batch
        self._model = model
        prefix_BT = batch.ids_BT[:, :-1]
        self._cache = model.model(input_ids=prefix_BT, use_cache=True).past_key_values

    def logits(self) -> Tensor:
        """Next-token logits [B, V] after the last token, under whatever hooks are active."""
        last_B1 = self.batch.ids_BT[:, -1:]
        out = self._model(input_ids=last_B1, past_key_values=self._cache, use_cache=True)
        self._cache.crop(-1)
        return out.logits[:, -1]


def last_logits(model: LlamaForCausalLM, ids_BT: Tensor, mask: Tensor | None = None) -> Tensor:
    """Next-token logits [B, V] of the full pass, in chunks."""
    parts = []
    for part in ids_BT.split(_CHUNK):
        out = model(input_ids=part, attention_mask=mask, use_cache=False, logits_to_keep=1)
        parts.append(out.logits[:, -1])
    return torch.cat(parts)


def accuracy(logits_BV: Tensor, answers_B: Tensor) -> Figure:
    """Share of prompts whose most likely next token is the answer, over the whole vocabulary."""
    right = int((logits_BV.argmax(dim=1) == answers_B).sum())
    return Figure.share(right, len(answers_B))


def answer_log_probability(logits_BV: Tensor, answers_B: Tensor) -> Tensor:
    """Log-probability [B] of each prompt's answer."""
    return logits_BV.log_softmax(dim=1).gather(1, answers_B[:, None])[:, 0]


def head_outputs(model: LlamaForCausalLM, ids_BT: Tensor) -> Tensor:
    """Head outputs [B, L, Z] of every layer at the last token."""
    layers = tuple(range(model.config.num_hidden_layers))
    rows = []
    for part in ids_BT.split(_CHUNK):
        with reading_heads(model, layers) as seen:
            model.model(input_ids=part, use_cache=False)
        rows.append(torch.stack([seen[layer] for layer in layers], dim=1))
    return torch.cat(rows)


def contributions(model: LlamaForCausalLM, outputs: Tensor) -> Tensor:
    """Head contributions [..., L, H, D] to the residual stream from outputs [..., L, Z]."""
    heads = model.config.num_attention_heads
    parts = []
    for layer in range(model.config.num_hidden_layers):
        weight_DHd = output_projection(model, layer).weight.unflatten(1, (heads, -1))
        z = outputs[..., layer, :].unflatten(-1, (heads, -1))
        parts.append(torch.einsum("...hd,Dhd->...hD", z, weight_DHd))
    return torch.stack(parts, dim=-3)


@contextmanager
def gated(model: LlamaForCausalLM, gates_LH: Tensor, base_BLZ: Tensor) -> Iterator[None]:
    """Replace heads at the last token: gate * own output + (1 - gate) * base (rows may be one)."""
    width = base_BLZ.shape[-1] // gates_LH.shape[1]

    def hook_for(layer: int) -> Any:
        gate_Z = gates_LH[layer].repeat_interleave(width)
        fill_BZ = (1 - gate_Z) * base_BLZ[:, layer]

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z_BTZ = inputs[0]
            last_B1Z = (z_BTZ[:, -1] * gate_Z + fill_BZ)[:, None]
            return (torch.cat([z_BTZ[:, :-1], last_B1Z], dim=1), *inputs[1:])

        return hook

    with ExitStack() as stack:
        for layer in range(gates_LH.shape[0]):
            handle = output_projection(model, layer).register_forward_pre_hook(hook_for(layer))
            stack.callback(handle.remove)
        yield
