"""Where each architecture keeps its attention output projection and its feed-forward block.

The input of that projection is `[B, T, heads * width]`, heads concatenated in order, in every
decoder-only family of transformers (the contract is verified on a dry forward, see `layout.py`).
Of the feed-forward block the table names the module whose output is *added to the residual stream*:
the block itself, the norm behind it where a family has one (gemma2, olmo2, glm4, ...), or its last
projection where the block adds the residual itself (bloom, mpt) or has no module (opt, xglm).
Granite scales that output by a constant as it adds it, which commutes with gating.
Dispatch is on `config.model_type` alone, never on the name of a checkpoint or of a class.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Where the heads and the feed-forward blocks of one architecture are.

    Attributes:
        name: `config.model_type`.
        layers: dotted path of the module list of decoder layers, from the causal LM.
        attention: dotted path of the attention module within a decoder layer.
        out_proj: name of the output projection within the attention module.
        mlp: dotted path, within a decoder layer, of the module whose output is what the
            feed-forward block adds to the residual stream.
    """

    name: str
    layers: str
    attention: str
    out_proj: str
    mlp: str = "mlp"


PROJECTION_NAMES = ("o_proj", "out_proj", "c_proj", "dense")
"""Names that the structural fallback accepts for an output projection."""

MLP_NAMES = (
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
    "mlp",
    "ffn",
    "feed_forward",
    "block_sparse_moe",
    "moe",
    "fc2",
)
"""Names that the structural fallback accepts for what a feed-forward block adds, in this order."""

_MLP_ELSEWHERE = {
    "exaone4": "post_feedforward_layernorm",
    "gemma2": "post_feedforward_layernorm",
    "gemma3_text": "post_feedforward_layernorm",
    "glm4": "post_mlp_layernorm",
    "granitemoe": "block_sparse_moe",
    "olmo2": "post_feedforward_layernorm",
    "olmo3": "post_feedforward_layernorm",
}

_LAYERS_SELF_ATTN_O_PROJ = (
    "apertus",
    "arcee",
    "cohere",
    "cohere2",
    "deepseek_v2",
    "deepseek_v3",
    "ernie4_5",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_oss",
    "granite",
    "granitemoe",
    "helium",
    "llama",
    "ministral",
    "ministral3",
    "mistral",
    "mixtral",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
)

_OTHERS = (
    Family("bloom", "transformer.h", "self_attention", "dense", "mlp.dense_4h_to_h"),
    Family("codegen", "transformer.h", "attn", "out_proj"),
    Family("falcon", "transformer.h", "self_attention", "dense"),
    Family(
        "gemma3",
        "model.language_model.layers",
        "self_attn",
        "o_proj",
        "post_feedforward_layernorm",
    ),
    Family("gpt2", "transformer.h", "attn", "c_proj"),
    Family("gpt_bigcode", "transformer.h", "attn", "c_proj"),
    Family("gpt_neo", "transformer.h", "attn.attention", "out_proj"),
    Family("gpt_neox", "gpt_neox.layers", "attention", "dense"),
    Family("gptj", "transformer.h", "attn", "out_proj"),
    Family("mpt", "transformer.blocks", "attn", "out_proj", "ffn.down_proj"),
    Family("opt", "model.decoder.layers", "self_attn", "out_proj", "fc2"),
    Family("phi", "model.layers", "self_attn", "dense"),
    Family("xglm", "model.layers", "self_attn", "out_proj", "fc2"),
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(
            Family(name, "model.layers", "self_attn", "o_proj", _MLP_ELSEWHERE.get(name, "mlp"))
            for name in _LAYERS_SELF_ATTN_O_PROJ
        ),
        *_OTHERS,
    )
}
"""The known families by `model_type`; any other model goes through the structural fallback."""

REFUSED: dict[str, str] = {
    "diffllama": "its heads work in pairs whose attention maps are subtracted from one another, "
    "so a slice of the projection's input is not one head",
}
"""Architectures known to break the contract, with the reason the user is told."""
