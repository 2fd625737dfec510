"""Small handmade tokenizers that behave like those of the model families headloc meets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
Merges = Sequence[tuple[str, str]]

#: `19` and ` 19` are single tokens where the pre-tokenizer leaves them together; `23` is two.
NUMBERS: Merges = [("1", "9"), ("Ġ", "19"), ("-", ">"), ("Ġ", "f"), ("f", "oo"), ("o", "o")]
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def word_level(
    words: Sequence[str] = (), *, bos: bool = True, largest: int = 150
) -> PreTrainedTokenizerFast:
    """Numbers up to `largest` and words are tokens; everything else a character, or unknown."""
    numbers = map(str, range(largest + 1))
    pieces = [UNK, BOS, EOS, *numbers, "->", *words, *(f" {word}" for word in words)]
    pieces += list("#: \n")
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    pattern = Regex(r" ?[A-Za-z]+|->|[0-9]+|[\s\S]")
    backend.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    backend.decoder = decoders.Fuse()
    return _wrap(backend, bos=bos, unk=True)


def byte_level(
    merges: Merges = NUMBERS,
    *,
    pattern: str | None = None,
    bos: bool = False,
    trim_offsets: bool = False,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE: GPT-2's own pre-tokenizer (numbers glued to the blank), or a pattern."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [BOS, EOS, *alphabet, *(left + right for left, right in merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    known = [pair for pair in merges if pair[0] in vocabulary and pair[1] in vocabulary]
    backend = Tokenizer(models.BPE(vocabulary, known))
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    backend.pre_tokenizer = byte
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    backend.decoder = decoders.ByteLevel()
    if not bos:
        backend.post_processor = processors.ByteLevel(
            add_prefix_space=False, trim_offsets=trim_offsets
        )
    return _wrap(backend, bos=bos)


def llama3() -> PreTrainedTokenizerFast:
    """Up to three digits are one token and a blank in front of them is another; BOS by default."""
    digits = [(str(a), str(b)) for a in range(1, 3) for b in range(10)]
    return byte_level([*digits, ("-", ">"), (":", "Ċ")], pattern=LLAMA3, bos=True)


def qwen() -> PreTrainedTokenizerFast:
    """One token a digit, no BOS by default."""
    return byte_level(NUMBERS, pattern=QWEN)


def metaspace(*, legacy: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece-like: blanks are `▁`, one more stands in front, digits are single tokens."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [UNK, BOS, EOS, "\n", "▁", *letters, "->", "▁f", "oo", "▁foo"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("-", ">"), ("▁", "f"), ("o", "o"), ("▁f", "oo")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNK, fuse_unk=True))
    if legacy:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrap(backend, bos=True, eos=eos, unk=True)


def _wrap(
    backend: Tokenizer, *, bos: bool, eos: bool = False, unk: bool = False
) -> PreTrainedTokenizerFast:
    special = [(name, backend.token_to_id(name)) for name in (BOS, EOS)]
    if bos:
        single = f"{BOS} $A {EOS}" if eos else f"{BOS} $A"
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B:1", special_tokens=special
        )
    names: dict[str, Any] = {"bos_token": BOS, "eos_token": EOS}
    if unk:
        names["unk_token"] = UNK
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)
