"""Tiny random models of every family, for tests on a CPU: two layers, width 32, 61 tokens.

Weights are redrawn so that logits are far from degenerate and no bias is zero.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headloc.lm.batch import EncodedPrompt, Role, TokenBatch, collate
from headloc.lm.frozen import FrozenLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYERS = 2
HEADS = 4
VOCAB = 61
WINDOW = 5


@dataclass(frozen=True)
class Spec:
    """One tiny model and the heads it is expected to have.

    Attributes:
        model_type: `config.model_type`.
        width: expected width of a head.
        kv_heads: expected number of key/value heads.
        options: configuration on top of the common one.
        common: False for a configuration that names its sizes itself.
    """

    model_type: str
    width: int = 8
    kv_heads: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    common: bool = True


_TOKENS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_SPARSE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_MLA = {
    "kv_lora_rank": 12,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 7,
    "num_key_value_heads": HEADS,
    **_SPARSE,
}
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1,
         "original_max_position_embeddings": 64}  # fmt: skip
_GPT2 = {"n_embd": 32, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}


def _gpt(model_type: str, **options: Any) -> Spec:
    return Spec(model_type, kv_heads=HEADS, options={**_GPT2, **options}, common=False)


def _falcon(kv_heads: int, **options: Any) -> Spec:
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    return Spec("falcon", kv_heads=kv_heads, options={**sizes, **options}, common=False)


def _head_dim(model_type: str, width: int = 12, **options: Any) -> Spec:
    return Spec(model_type, width=width, options={"head_dim": width, **options})


SPECS: dict[str, Spec] = {
    "apertus": Spec("apertus"),
    "arcee": Spec("arcee"),
    "bloom": Spec(
        "bloom",
        kv_heads=HEADS,
        options={"hidden_size": 32, "n_layer": LAYERS, "n_head": HEADS},
        common=False,
    ),
    "codegen": _gpt("codegen", rotary_dim=4),
    "cohere": Spec("cohere", options={"use_qk_norm": True}),
    "cohere2": _head_dim("cohere2", 8, **_SLIDING),
    "deepseek_v2": Spec("deepseek_v2", width=7, kv_heads=HEADS, options=_MLA),
    "deepseek_v3": Spec("deepseek_v3", width=7, kv_heads=HEADS, options=_MLA),
    "ernie4_5": _head_dim("ernie4_5", 12),
    "exaone4": Spec("exaone4", options=_SLIDING),
    "falcon_new": _falcon(2, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_multi_query": _falcon(1, multi_query=True, new_decoder_architecture=False),
    "falcon_alibi": _falcon(
        HEADS, multi_query=False, new_decoder_architecture=False, alibi=True, bias=True
    ),
    "gemma": _head_dim("gemma"),
    "gemma2": _head_dim("gemma2", query_pre_attn_scalar=12, **_SLIDING),
    "gemma3": _head_dim("gemma3_text", query_pre_attn_scalar=12, **_SLIDING),
    "glm": _head_dim("glm", 8, partial_rotary_factor=0.5),
    "glm4": _head_dim("glm4", 8, partial_rotary_factor=0.5, attention_bias=True),
    "glm4_moe": _head_dim("glm4_moe", 8, partial_rotary_factor=0.5, **_SPARSE),
    "gpt2": _gpt("gpt2"),
    "gpt_bigcode": Spec("gpt_bigcode", kv_heads=1, options=_GPT2, common=False),
    "gpt_neo": Spec(
        "gpt_neo",
        kv_heads=HEADS,
        options={
            "hidden_size": 32,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": 64,
        },
        common=False,
    ),
    "gpt_neox": Spec("gpt_neox", kv_heads=HEADS, options={"num_key_value_heads": None}),
    "gpt_oss": _head_dim("gpt_oss", 12, num_local_experts=4, num_experts_per_tok=2, **_SLIDING),
    "gptj": _gpt("gptj", rotary_dim=4),
    "granite": Spec("granite", options={"residual_multiplier": 0.5, "attention_multiplier": 0.3}),
    "granitemoe": Spec("granitemoe", options=_MOE),
    "helium": _head_dim("helium", 8),
    "llama": Spec("llama"),
    "llama_mha": Spec("llama", kv_heads=HEADS, options={"num_key_value_heads": HEADS}),
    "llama_wide": _head_dim("llama", attention_bias=True),
    "ministral": _head_dim("ministral", 8, **_SLIDING),
    "ministral3": _head_dim("ministral3", 12, rope_parameters=_ROPE),
    "mistral": Spec("mistral", options={"sliding_window": WINDOW}),
    "mixtral": Spec("mixtral", options=_MOE),
    "mpt": Spec(
        "mpt",
        kv_heads=HEADS,
        options={"d_model": 32, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 64},
        common=False,
    ),
    "nemotron": Spec("nemotron"),
    "olmo": Spec("olmo"),
    "olmo2": Spec("olmo2"),
    "olmo3": Spec("olmo3", options=_SLIDING),
    "olmoe": Spec("olmoe", options=_MOE),
    "opt": Spec(
        "opt",
        kv_heads=HEADS,
        options={"ffn_dim": 40, "word_embed_proj_dim": 32, "num_key_value_heads": None},
    ),
    "phi": Spec("phi"),
    "phi3": Spec("phi3", options={"sliding_window": WINDOW}),
    "qwen2": Spec("qwen2"),
    "qwen2_moe": Spec(
        "qwen2_moe",
        options={
            **_MOE,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "decoder_sparse_step": 1,
        },
    ),
    "qwen3": _head_dim("qwen3"),
    "qwen3_moe": _head_dim("qwen3_moe", moe_intermediate_size=16, **_MOE),
    "seed_oss": _head_dim("seed_oss", 8),
    "smollm3": Spec("smollm3", options={"no_rope_layers": [1, 0]}),
    "stablelm": Spec("stablelm", options={"use_qkv_bias": True}),
    "starcoder2": Spec("starcoder2", options={"sliding_window": WINDOW}),
    "xglm": Spec(
        "xglm",
        kv_heads=HEADS,
        options={
            "d_model": 32,
            "num_layers": LAYERS,
            "attention_heads": HEADS,
            "ffn_dim": 40,
            "max_position_embeddings": 64,
        },
        common=False,
    ),
}
"""Every tiny model by name; variants of one family have names of their own."""

FAMILIES = sorted(SPECS)


def tiny_model(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> PreTrainedModel:
    """A new tiny random model; the same arguments give the same weights.

    A family that is not in `SPECS` is taken as a `model_type` with the common sizes and `options`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = SPECS.get(family, Spec(family))
    sizes = {**_TOKENS, **(_COMMON if spec.common else {}), **spec.options, **options}
    config = AutoConfig.for_model(
        spec.model_type, **{name: value for name, value in sizes.items() if value is not None}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        _redraw(model)
    return model.to(dtype).eval()


@cache
def tiny_lm(family: str, dtype: torch.dtype = torch.float32) -> FrozenLM:
    """A frozen tiny model built once per process, for tests that do not change it."""
    return FrozenLM(tiny_model(family, dtype=dtype))


def tiny_prompt(length: int, answers: int = 2, seed: int = 0) -> EncodedPrompt:
    """A random prompt of `length` tokens with an answer of `answers` tokens."""
    draw = random.Random(f"{length} {answers} {seed}")
    tokens = [draw.randrange(3, VOCAB) for _ in range(length + answers)]
    roles = (Role.OTHER,) * length
    return EncodedPrompt(tuple(tokens[:length]), tuple(tokens[length:]), roles)


def tiny_batch(lengths: Sequence[int] = (5, 11, 1, 8), answers: int = 2) -> TokenBatch:
    """Left-padded rows of unequal length; the second has an answer of one token only."""
    counts = [1 if row == 1 else answers for row in range(len(lengths))]
    prompts = [tiny_prompt(n, count) for n, count in zip(lengths, counts, strict=True)]
    return collate(prompts, pad_id=0)


def hook_count(model: nn.Module) -> int:
    """Number of forward hooks of any kind on all modules."""
    modules = list(model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


@torch.no_grad()
def _redraw(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, 0.25)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
