"""The bundled model's tokenizer: one token per word and per integer.

A word-level vocabulary over pieces cut by one regular expression, so that every number an add-k
prompt uses is a single token, offsets are exact, and decoding is plain concatenation.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from headloc.bundled.vocabulary import (
    LABEL_WORDS,
    OFFSETS,
    all_category_words,
    categories,
    facts,
    instruction_token,
)

BOS, EOS, PAD, UNK = "<bos>", "<eos>", "<pad>", "<unk>"
ARROW = "->"
MAX_INTEGER = 199
#: A word with its leading space, an instruction token, the arrow, a run of digits, any character.
PIECE_PATTERN = r" ?[A-Za-z]+|<\+[0-9]+>|->|[0-9]+|[\s\S]"
#: Words of the prompt templates a user may ask for; most are not trained on.
TEMPLATE_WORDS = (
    "Question", "Answer", "Input", "Output", "text", "label", "word", "class", "Text", "Label",
)  # fmt: skip
MODEL_MAX_LENGTH = 512


def pieces(text: str) -> list[str]:
    """Cut ``text`` as the tokenizer does (special tokens aside)."""
    return re.findall(PIECE_PATTERN, text)


def build_vocabulary() -> dict[str, int]:
    """Every token and its id, in a fixed order."""
    words = (
        *TEMPLATE_WORDS,
        *LABEL_WORDS,
        *categories(),
        *all_category_words(),
        *string.ascii_letters,
    )
    groups: tuple[Iterable[str], ...] = (
        (PAD, BOS, EOS, UNK),
        (str(number) for number in range(MAX_INTEGER + 1)),
        (ARROW, "\n", "\t", " "),
        string.punctuation,
        (instruction_token(offset) for offset in OFFSETS),
        words,
        (f" {word}" for word in words),
        (piece for fact in facts() for piece in pieces(fact.sentence)),
    )
    unique = dict.fromkeys(token for group in groups for token in group)
    return {token: index for index, token in enumerate(unique)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, ready to encode, decode and ``save_pretrained``."""
    vocabulary = build_vocabulary()
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE_PATTERN), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B:1",
        special_tokens=[(BOS, vocabulary[BOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        padding_side="left",
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
