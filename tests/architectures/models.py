"""The models of the suite, and where transformers itself rounds in double precision.

Identities are tried in float64, so that a gap is a mistake and not rounding.  Some families compute
a part in float32 whatever they are asked for; what that leaves of an identity is stated here once.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from headloc.lm.batch import TokenBatch
from headloc.lm.frozen import FrozenLM
from tests.tiny import tiny_batch, tiny_lm, tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTHS = (5, 11, 1, 8)

UNPADDED = ("bloom", "gemma2", "mpt")
"""NaN on left padding in float64, or not computed at all."""

LOOSE = ("codegen", "deepseek_v2", "gpt_neo", "gptj", "mpt")
"""Positions or attention in float32, so that two passes agree no better than that."""

SINGLE = ("xglm",)
"""Runs in float32 only."""

EXPERTS = ("deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss", "granitemoe", "mixtral", "olmoe",
           "qwen2_moe", "qwen3_moe")  # fmt: skip
"""The fused kernels of expert layers take no float64."""


def double_model(family: str, **options: Any) -> PreTrainedModel:
    """A new tiny model in float64."""
    model = tiny_model(family, dtype=torch.float64, **options)
    if family in EXPERTS:
        model.set_experts_implementation("eager")
    for layer in getattr(getattr(model, "model", None), "layers", ()):
        norm = getattr(getattr(layer, "self_attn", None), "kv_a_layernorm", None)
        if norm is not None:
            # transformers takes this norm in float32, which is not what is tested.
            exact = torch.nn.RMSNorm(len(norm.weight), eps=1e-6, dtype=torch.float64)
            exact.load_state_dict(norm.state_dict())
            layer.self_attn.kv_a_layernorm = exact
    return model


@cache
def double_lm(family: str) -> FrozenLM:
    """The family's tiny model in float64, float32 where there is no other."""
    if family in SINGLE:
        return tiny_lm(family)
    lm = FrozenLM(double_model(family))
    if family in (*UNPADDED, *LOOSE):
        # Its probe would take NaN or float32 rounding for a cache that cannot be used.
        lm.__dict__["_prefix_is_exact"] = True
    return lm


def double_batch(family: str) -> TokenBatch:
    """Prompts that the family can run in float64: left-padded wherever possible."""
    return tiny_batch((9, 9, 9)) if family in UNPADDED else tiny_batch(LENGTHS)
