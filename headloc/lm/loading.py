"""Load a model and its tokenizer from a folder or the hub, with errors a person can act on.

transformers fills weights that a checkpoint lacks with random values and goes on; here that is an
error, because the heads of a half-random model mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from headloc.errors import HeadlocError, UnsupportedModelError, suggest
from headloc.faults import out_of_memory
from headloc.lm.checkpoint import Checkpoint, check_tokenizer_files, find_checkpoint
from headloc.lm.families import FAMILIES
from headloc.lm.frozen import FrozenLM
from headloc.lm.placement import check_device_map
from headloc.lm.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Buffers that old checkpoints carry and that today's models compute.
_HARMLESS_EXTRAS = (".inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")


def load_lm(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    local_only: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[str | int, str] | None = None,
) -> FrozenLM:
    """Load a causal language model with its tokenizer, frozen, with its heads located.

    Args:
        path: a folder in hub format (config.json, safetensors, tokenizer), or a hub id.
        revision: branch, tag or commit of a hub model.
        dtype: auto (that of the checkpoint), float64, float32, bfloat16 or float16.
        device: auto (cuda when there is one), cpu, cuda, cuda:N or mps.
        trust_remote_code: run modelling code that comes with the checkpoint.
        attn_implementation: eager, sdpa, ...; the model's own choice when None.
        local_only: never contact the hub.
        device_map: spread the model over devices (needs accelerate): auto, balanced,
            balanced_low_0, sequential, or a map from module names to devices; `device` is then not
            used. Layers mapped to cpu or disk are brought to a GPU, where there is one, when they
            run.
        max_memory: what a device map may use, such as {0: "40GiB", "cpu": "200GiB"}.

    Raises:
        HeadlocError: when anything about the path, the files or the options is wrong.
        UnsupportedModelError: when the architecture has no heads that can be located.
    """
    torch_dtype = _parse_dtype(dtype)
    if device_map is not None:
        check_device_map(device_map)
    elif max_memory is not None:
        raise HeadlocError("model.max_memory limits a device map. Set model.device_map=auto.")
    target = None if device_map else parse_device(device)
    checkpoint = find_checkpoint(
        path, revision=revision, local_only=local_only, remote_code=trust_remote_code
    )
    _check_architecture(checkpoint, trust_remote_code)
    check_tokenizer_files(checkpoint.folder)
    with _quiet():
        tokenizer = load_tokenizer(str(checkpoint.folder), trust_remote_code=trust_remote_code)
        model = _load_model(
            checkpoint,
            dtype=torch_dtype,
            trust_remote_code=trust_remote_code,
            attn_implementation=attn_implementation,
            device_map=device_map,
            max_memory=_memory(max_memory),
        )
    if target is not None:
        model = _move(model, target)
    lm = FrozenLM(model, tokenizer)
    lm.source = replace(lm.source, name=checkpoint.name, revision=checkpoint.revision)
    return lm


def _memory(limits: Mapping[str | int, str] | None) -> dict[str | int, str] | None:
    """Return memory limits with devices as accelerate names them: 0, 1, ... and cpu."""
    if limits is None:
        return None
    return {int(key) if str(key).isdigit() else key: value for key, value in limits.items()}


def _parse_dtype(name: str) -> torch.dtype | str:
    if name == "auto":
        return name
    if name not in _DTYPES:
        raise HeadlocError(f"Unknown dtype {name!r}. {suggest(name, ['auto', *_DTYPES])}")
    return _DTYPES[name]


def parse_device(name: str) -> torch.device:
    """The device a user means, checked to be there.

    Raises:
        HeadlocError: when the name is not a device, or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        known = ["auto", "cpu", "cuda", "cuda:0", "mps"]
        raise HeadlocError(f"Unknown device {name!r}. {suggest(name, known)}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HeadlocError(
            f"Device {name!r} was asked for, but {torch.cuda.device_count()} CUDA devices are "
            "visible. Use device=auto or device=cpu."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise HeadlocError("Device 'mps' was asked for, but is not available. Use device=cpu.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise HeadlocError(f"Device {name!r} is not supported. Use auto, cpu, cuda or mps.")
    return device


def _check_architecture(checkpoint: Checkpoint, trust_remote_code: bool) -> None:
    """Refuse by configuration what would otherwise fail deep inside transformers."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = checkpoint.config
    model_type = config["model_type"]
    if config.get("is_encoder_decoder"):
        raise UnsupportedModelError(
            f"{checkpoint.name!r} is an encoder-decoder ({model_type}); headloc reads the heads of "
            "decoder-only language models. Give a causal language model (gpt2, llama, qwen3, ...)."
        )
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or trust_remote_code:
        return
    if "auto_map" in config:
        raise HeadlocError(
            f"{checkpoint.name!r} comes with its own modelling code ({model_type}). If you trust "
            "it, set trust_remote_code=true; it then runs on this machine."
        )
    if model_type in CONFIG_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"{checkpoint.name!r} is a {model_type}, which is not a causal language model. Give a "
            "decoder-only language model (gpt2, llama, qwen3, ...)."
        )
    raise UnsupportedModelError(
        f"{checkpoint.name!r} has model_type {model_type!r}, which this version of transformers "
        f"does not know. {suggest(model_type, FAMILIES)} A newer transformers may know it."
    )


def _load_model(checkpoint: Checkpoint, **options: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    given = {name: value for name, value in options.items() if value is not None}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(checkpoint.folder),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **given,
        )
    # safetensors, torch and transformers raise unrelated types for a damaged or ill-fitting file.
    except Exception as error:
        if out_of_memory(error):
            raise HeadlocError(
                f"The model in {str(checkpoint.folder)!r} does not fit into memory "
                f"({_first_line(error)}) Use model.dtype=bfloat16, model.device_map=auto, or a "
                "machine with more memory."
            ) from error
        raise HeadlocError(
            f"The model in {str(checkpoint.folder)!r} cannot be loaded: {_first_line(error)} "
            "Check that the weight files are complete and belong to config.json."
        ) from error
    _check_loading(checkpoint, info)
    return model


def _check_loading(checkpoint: Checkpoint, info: Mapping[str, Any]) -> None:
    """Refuse weights that do not fit the model one to one."""
    extra = [key for key in info["unexpected_keys"] if not key.endswith(_HARMLESS_EXTRAS)]
    problems = {
        "are missing (transformers would fill them with random values)": info["missing_keys"],
        "belong to no part of the model": extra,
        "have another shape": [entry[0] for entry in info["mismatched_keys"]],
    }
    for what, keys in problems.items():
        if keys:
            shown = sorted(keys)
            raise HeadlocError(
                f"{len(shown)} weights of {checkpoint.name!r} {what}: {', '.join(shown[:3])}"
                f"{', ...' if len(shown) > 3 else ''}. The weight files and config.json do not "
                "belong together; save or download the model again."
            )
    if info["error_msgs"]:
        raise HeadlocError(f"Loading {checkpoint.name!r} failed: {info['error_msgs'][0]}")


def _move(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    if getattr(model, "is_quantized", False):
        return model  # placed while loading; moving it again is refused by transformers
    try:
        return model.to(device)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise HeadlocError(
            f"The model does not fit into the memory of {device}. Use dtype=bfloat16, device=cpu, "
            "or device_map=auto."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = (lines[0] if lines else type(error).__name__).rstrip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and warnings for the block, then as it was before."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars, hub_bars = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars and hub_bars:
            logging.enable_progress_bar()
