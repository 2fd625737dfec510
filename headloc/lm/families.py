"""Where each architecture keeps its attention output projection, the site of every tap.

The input of that projection is `[B, T, heads * width]`, heads concatenated in order, in every
decoder-only family of transformers (the contract is verified on a dry forward, see `layout.py`).
Dispatch is on `config.model_type` alone, never on the name of a checkpoint or of a class.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """Where the heads of one architecture are.

    Attributes:
        name: `config.model_type`.
        layers: dotted path of the module list of decoder layers, from the causal LM.
        attention: dotted path of the attention module within a decoder layer.
        out_proj: name of the output projection within the attention module.
    """

    name: str
    layers: str
    attention: str
    out_proj: str


PROJECTION_NAMES = ("o_proj", "out_proj", "c_proj", "dense")
"""Names that the structural fallback accepts for an output projection."""

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
    Family("bloom", "transformer.h", "self_attention", "dense"),
    Family("codegen", "transformer.h", "attn", "out_proj"),
    Family("falcon", "transformer.h", "self_attention", "dense"),
    Family("gemma3", "model.language_model.layers", "self_attn", "o_proj"),
    Family("gpt2", "transformer.h", "attn", "c_proj"),
    Family("gpt_bigcode", "transformer.h", "attn", "c_proj"),
    Family("gpt_neo", "transformer.h", "attn.attention", "out_proj"),
    Family("gpt_neox", "gpt_neox.layers", "attention", "dense"),
    Family("gptj", "transformer.h", "attn", "out_proj"),
    Family("mpt", "transformer.blocks", "attn", "out_proj"),
    Family("opt", "model.decoder.layers", "self_attn", "out_proj"),
    Family("phi", "model.layers", "self_attn", "dense"),
    Family("xglm", "model.layers", "self_attn", "out_proj"),
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(Family(name, "model.layers", "self_attn", "o_proj") for name in _LAYERS_SELF_ATTN_O_PROJ),
        *_OTHERS,
    )
}
"""The known families by `model_type`; any other model goes through the structural fallback."""

REFUSED: dict[str, str] = {
    "diffllama": "its heads work in pairs whose attention maps are subtracted from one another, "
    "so a slice of the projection's input is not one head",
}
"""Architectures known to break the contract, with the reason the user is told."""
