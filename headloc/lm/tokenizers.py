"""Load tokenizers: those of a model's folder, and one alone where no weights are needed.

transformers chooses a tokenizer's class by `model_type`, and that may cut text otherwise than
`tokenizer.json` does: a model of type gpt2 or qwen2 with a tokenizer of its own
would be run on wrong tokens without a word.  So both are asked.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from headloc.errors import HeadlocError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "12->19#5->12 the Capital of\n x: (7, y)\n  2"
"""A text with what prompts are made of: numbers, arrows, words, blanks, lines."""

_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that do what tokenizer.json says and nothing else."""


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a model's folder or from the hub.

    Where `tokenizer_config.json` asks for the plain tokenizer.json, that is what is loaded.  Warns
    where a folder's tokenizer.json would cut text otherwise than the class that transformers takes.

    Args:
        name: a folder, which is read without a network, or a hub id.
        trust_remote_code: let the tokenizer run code of its own.

    Raises:
        HeadlocError: when there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(name)
    local = folder.is_dir()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, local_files_only=local
        )
        if local and _asks_for_plain(folder) and type(tokenizer).__name__ not in _GENERIC:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name, local_files_only=True)
        difference = _other_cut(tokenizer, folder) if local else None
    # Tokenizer backends and the hub raise bare exceptions of many kinds.
    except Exception as error:
        line = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise HeadlocError(
            f"The tokenizer of {name!r} cannot be loaded: {line.strip()} Save it again next to the "
            "model, tokenizer.save_pretrained(folder), or give another folder or hub id."
        ) from error
    if difference is not None:
        warnings.warn(difference, stacklevel=2)
    return tokenizer


def _asks_for_plain(folder: Path) -> bool:
    """Whether a folder says that its tokenizer.json is all there is to its tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        return False
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return config.get("tokenizer_class") in _GENERIC
    except (OSError, ValueError, AttributeError):
        return False


def _other_cut(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str | None:
    """Return in a sentence how tokenizer.json cuts the probe otherwise; None where it does not."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    plainly = type(tokenizer).__name__ in _GENERIC
    if plainly or not file.is_file() or not tokenizer.is_fast:
        return None
    plain = Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False)
    used = tokenizer(PROBE, add_special_tokens=False).input_ids
    if used == plain.ids:
        return None
    return (
        f"{file} cuts text otherwise than {type(tokenizer).__name__}, which transformers takes for "
        f"models of this type: {PROBE[:7]!r}... is {plain.tokens[:4]} there and "
        f"{tokenizer.convert_ids_to_tokens(used[:4])} here. If the model was trained with its "
        'tokenizer.json, write "tokenizer_class": "PreTrainedTokenizerFast" into '
        f"{folder / 'tokenizer_config.json'}."
    )
