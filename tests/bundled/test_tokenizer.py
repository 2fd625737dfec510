"""The bundled tokenizer: single-token integers, exact offsets, lossless decoding."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from headloc.bundled import model_dir
from headloc.bundled.prompts import RARE_TEMPLATES
from headloc.bundled.tokenizer import MAX_INTEGER, build_tokenizer
from headloc.bundled.vocabulary import LABEL_WORDS, OFFSETS, categories, facts, instruction_token

TEXTS = [
    "12->19#30->37#5->",
    "The capital of France is Paris.",
    "cat->foo#piano->bar#dog->",
    "<+7>12->19",
    "Question:12\nAnswer:19\nQuestion:5\nAnswer:",
    "Input: cat\nOutput: foo\n\nx: 3 f(x): 4",
    "cat : bar dog : foo",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_every_integer_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for number in range(MAX_INTEGER + 1):
        ids = tokenizer(f"{number}->", add_special_tokens=False).input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == [str(number), "->"]


def test_pieces(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("12->19#5->") == ["12", "->", "19", "#", "5", "->"]
    sentence = ["The", " capital", " of", " France", " is", " Paris", "."]
    assert tokenizer.tokenize("The capital of France is Paris.") == sentence
    assert tokenizer.tokenize("x:12") == ["x", ":", "12"]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_and_offsets(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in encoded.input_ids
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    assert "".join(tokens[1:]) == text
    for token, (start, stop) in zip(tokens[1:], encoded.offset_mapping[1:], strict=True):
        assert text[start:stop] == token
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == text
    plain = tokenizer(text, add_special_tokens=False).input_ids
    assert plain == encoded.input_ids[1:]
    assert tokenizer.decode(plain) == text


def test_unknown_words_and_numbers(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer("zzzzz 4711", add_special_tokens=False).input_ids
    assert ids[0] == ids[-1] == tokenizer.unk_token_id


def test_vocabulary_covers_words_and_templates(tokenizer: PreTrainedTokenizerFast) -> None:
    known = tokenizer.get_vocab()
    words = [word for group in categories().values() for word in group]
    for word in (*words, *LABEL_WORDS):
        assert word in known
        assert f" {word}" in known
    assert all(fact.target in known for fact in facts())
    assert all(instruction_token(offset) in known for offset in OFFSETS)
    for template in RARE_TEMPLATES:
        text = template.before + template.between + template.after
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids


def test_padding_is_on_the_left(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = tokenizer(["5->", "12->19#5->"], padding=True)
    assert batch.input_ids[0][:4] == [tokenizer.pad_token_id] * 4
    assert batch.attention_mask[0] == [0] * 4 + [1] * 3


def test_shipped_tokenizer_is_the_built_one(tokenizer: PreTrainedTokenizerFast) -> None:
    shipped = AutoTokenizer.from_pretrained(model_dir())
    assert shipped.get_vocab() == tokenizer.get_vocab()
    assert shipped.padding_side == "left"
    for text in TEXTS:
        assert shipped(text).input_ids == tokenizer(text).input_ids
