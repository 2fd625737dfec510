"""Models of a named shape with random weights, for measuring what no download is needed for.

Time and memory of a step depend on the shape of a model and not on what it has learned.  Prompts
are cut by the bundled tokenizer, which has one token per integer, as Llama-3's has; the vocabulary
keeps the size of the named model, because the logits over it are part of the cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from headloc.errors import HeadlocError, suggest
from headloc.faults import out_of_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from headloc.lm.frozen import FrozenLM


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model.

    Attributes:
        model_type: `config.model_type` of transformers.
        layers: decoder layers.
        heads: query heads of a layer.
        width: width of the residual stream.
        vocabulary: token ids that the model scores; None for as many as the tokenizer has.
        options: further entries of the configuration.
    """

    model_type: str
    layers: int
    heads: int
    width: int
    vocabulary: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def _llama(layers: int, heads: int, width: int, kv_heads: int, ffn: int, **more: Any) -> Shape:
    vocabulary = more.pop("vocabulary", None)
    sizes = {"num_key_value_heads": kv_heads, "intermediate_size": ffn, **more}
    return Shape("llama", layers, heads, width, vocabulary, sizes)


SHAPES: dict[str, Shape] = {
    "llama_tiny": _llama(2, 4, 32, 2, 64),
    "llama_512": _llama(6, 8, 512, 8, 1408),
    "gpt2_small": Shape("gpt2", 12, 12, 768, 50257),
    "gpt2_large": Shape("gpt2", 36, 20, 1280, 50257),
    "llama_1b": _llama(16, 32, 2048, 8, 8192, vocabulary=128256, tie_word_embeddings=True),
    "llama_7b": _llama(32, 32, 4096, 32, 11008, vocabulary=32000),
    "llama3_8b": _llama(32, 32, 4096, 8, 14336, vocabulary=128256),
    "qwen25_7b": Shape(
        "qwen2",
        28,
        28,
        3584,
        152064,
        {"num_key_value_heads": 4, "intermediate_size": 18944, "tie_word_embeddings": False},
    ),
    "phi4": Shape(
        "phi3", 40, 40, 5120, 100352, {"num_key_value_heads": 10, "intermediate_size": 17920}
    ),
}
"""Shapes by name: two of our own and those of published models."""

_GPT2_NAMES = {"layers": "n_layer", "heads": "n_head", "width": "n_embd"}
_USUAL_NAMES = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
}


def named_shape(name: str) -> Shape:
    """Return a shape.

    Raises:
        HeadlocError: when the name is unknown.
    """
    if name not in SHAPES:
        raise HeadlocError(f"shape={name!r} is unknown. {suggest(str(name), SHAPES)}")
    return SHAPES[name]


def random_lm(
    shape: Shape,
    *,
    name: str,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> FrozenLM:
    """Build a model of a shape with random weights, directly on its device and in its dtype.

    Args:
        shape: the sizes.
        name: what the model is called in files.
        seed: seed of the weights.
        dtype: dtype of the weights; float32 when None.
        device: where they are drawn.

    Raises:
        HeadlocError: when the model does not fit into the memory of the device.
    """
    import torch

    from headloc.bundled.tokenizer import build_tokenizer
    from headloc.lm.frozen import FrozenLM

    tokenizer = build_tokenizer()
    config = _config(shape, len(tokenizer), tokenizer)
    try:
        model = _model(config, seed, dtype or torch.float32, torch.device(device))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise HeadlocError(
            f"A model of shape {name} does not fit into the memory of {device}. Use "
            "dtype=bfloat16, another device, or a smaller shape."
        ) from error
    lm = FrozenLM(model, tokenizer)
    lm.source = replace(lm.source, name=f"random/{name}", revision=f"seed-{seed}")
    return lm


def _config(shape: Shape, tokens: int, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    names = _GPT2_NAMES if shape.model_type == "gpt2" else _USUAL_NAMES
    sizes = {names[key]: getattr(shape, key) for key in names}
    return AutoConfig.for_model(
        shape.model_type,
        vocab_size=shape.vocabulary or tokens,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
        **shape.options,
    )


def _model(config: Any, seed: int, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)
