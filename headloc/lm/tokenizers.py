"""Load the tokenizer of a model alone, where its weights are not needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headloc.errors import HeadlocError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a model's folder or from the hub.

    Raises:
        HeadlocError: when there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    # Tokenizer backends and the hub raise bare exceptions of many kinds.
    except Exception as error:
        line = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise HeadlocError(
            f"The tokenizer of {name!r} cannot be loaded: {line.strip()} Give the folder of a "
            "model with its tokenizer, or a hub id."
        ) from error
