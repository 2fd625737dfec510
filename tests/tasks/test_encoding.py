"""Prompt and answer tokenised together: boundary, roles, spans, special tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headloc.errors import TaskError
from headloc.lm.batch import Role, collate
from headloc.randomness import stream
from headloc.tasks import (
    TEMPLATES,
    AddK,
    Demonstration,
    Encoded,
    Example,
    Rendered,
    Template,
    encode,
    encode_all,
    render,
)
from tests.tasks import zoo

ZOO = {
    "word_level": zoo.word_level(),
    "gpt2": zoo.byte_level(),
    "gpt2_trimmed": zoo.byte_level(trim_offsets=True),
    "llama3": zoo.llama3(),
    "qwen": zoo.qwen(),
    "metaspace": zoo.metaspace(),
    "metaspace_legacy": zoo.metaspace(legacy=True),
    "metaspace_eos": zoo.metaspace(eos=True),
}
BLANK = Template("Question: ", "\n", "Answer: ", "\n")
ADD_7 = Example("add_7", (Demonstration("12", "19"), Demonstration("30", "37")), "16", "23")


def tokens(tokenizer: Any, encoded: Encoded) -> tuple[list[str], list[str]]:
    prompt, answer = encoded.prompt.prompt_ids, encoded.prompt.answer_ids
    convert = tokenizer.convert_ids_to_tokens
    return convert(list(prompt)), convert(list(answer))


def encode_text(tokenizer: Any, text: str, answer: str, **options: Any) -> Encoded:
    """A zero-shot prompt that consists of its query and separator."""
    query, separator = text.split("|")
    template = Template("", separator, "", "#")
    return encode(tokenizer, render(Example("t", (), query, answer), template), **options)


def test_one_token_per_piece() -> None:
    encoded = encode(ZOO["word_level"], render(ADD_7, TEMPLATES["arrow"]))
    prompt, answer = tokens(ZOO["word_level"], encoded)
    assert prompt == ["<s>", "12", "->", "19", "#", "30", "->", "37", "#", "16", "->"]
    assert answer == ["23"]
    names = "BOS INPUT SEPARATOR LABEL END INPUT SEPARATOR LABEL END QUERY LAST"
    assert encoded.prompt.roles == tuple(Role[name] for name in names.split())
    assert encoded.text == "12->19#30->37#16->"
    assert [(span.start, span.stop) for span in encoded.spans] == [(i, i + 1) for i in range(1, 11)]
    assert encoded.spans[2].kind == "label"
    assert encoded.spans[2].demonstration == 0
    assert encoded.spans[-1].kind == "query_separator"
    assert encoded.spans[-1].demonstration is None


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        # The blank is glued to the number; with a blank of its own it ends the prompt.
        ("gpt2", ["7", "Ċ", "B", ":"], ["Ġ19"]),
        ("gpt2_trimmed", ["7", "Ċ", "B", ":"], ["Ġ19"]),
        ("llama3", ["<s>", "7", "Ċ", "B", ":", "Ġ"], ["19"]),
        ("qwen", ["7", "Ċ", "B", ":", "Ġ"], ["1", "9"]),
        ("metaspace", ["<s>", "▁", "7", "\n", "B", ":", "▁"], ["1", "9"]),
        ("metaspace_legacy", ["<s>", "▁", "7", "\n", "B", ":", "▁"], ["1", "9"]),
        ("metaspace_eos", ["<s>", "▁", "7", "\n", "B", ":", "▁"], ["1", "9"]),
    ],
)
def test_blank_before_the_answer(name: str, prompt: list[str], answer: list[str]) -> None:
    encoded = encode_text(ZOO[name], "7|\nB: ", "19")
    assert tokens(ZOO[name], encoded) == (prompt, answer)
    assert encoded.prompt.roles[-1] == Role.LAST
    # The same when the blank is the answer's: only the text as a whole counts.
    assert encode_text(ZOO[name], "7|\nB:", " 19").prompt == encoded.prompt


def test_newline_merged_into_the_prompts_last_token() -> None:
    # `:` and the line break are one token, which holds nothing of the answer.
    encoded = encode_text(ZOO["llama3"], "7|\nB:\n", "19")
    assert tokens(ZOO["llama3"], encoded) == (["<s>", "7", "Ċ", "B", ":Ċ"], ["19"])
    assert encoded.text == "7\nB:\n"


def test_several_blanks() -> None:
    encoded = encode_text(ZOO["gpt2"], "7|:  ", "19")
    assert tokens(ZOO["gpt2"], encoded) == (["7", ":", "Ġ"], ["Ġ19"])


@pytest.mark.parametrize("trim", [False, True])
def test_bare_blank_token_with_and_without_trimmed_offsets(trim: bool) -> None:
    tokenizer = zoo.byte_level([], trim_offsets=trim)
    encoded = encode_text(tokenizer, "7|: ", "19")
    assert tokens(tokenizer, encoded) == (["7", ":", "Ġ"], ["1", "9"])


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.parametrize("template", [*TEMPLATES.values(), BLANK], ids=[*TEMPLATES, "blank"])
def test_every_tokenizer_and_template(name: str, template: Template) -> None:
    tokenizer, rendered = ZOO[name], render(ADD_7, template)
    encoded = encode(tokenizer, rendered)
    ids, roles = encoded.prompt.prompt_ids, encoded.prompt.roles
    assert len(encoded.spans) == len(rendered.spans)
    front = encoded.spans[0].start
    assert set(roles[:front]) <= {Role.BOS}
    # Spans lie side by side and cover the prompt apart from BOS.
    stops = [front, *(span.stop for span in encoded.spans)]
    assert stops[:-1] == [span.start for span in encoded.spans]
    assert stops[-1] == len(ids)
    assert roles[-1] == Role.LAST
    for span in encoded.spans:
        role = {"query_separator": Role.SEPARATOR}.get(span.kind) or Role[span.kind.upper()]
        own = roles[span.start : min(span.stop, len(ids) - 1)]
        assert set(own) <= {role}
    # Labels always have tokens of their own.
    assert all(span.start < span.stop for span in encoded.spans if span.kind == "label")
    assert tokenizer.convert_ids_to_tokens(list(encoded.prompt.answer_ids))[-1] != zoo.EOS


@pytest.mark.parametrize("name", ["word_level", "gpt2", "llama3", "qwen"])
@pytest.mark.parametrize("template", ["arrow", "colon"])
def test_span_texts_read_back_from_tokens(name: str, template: str) -> None:
    tokenizer, rendered = ZOO[name], render(ADD_7, TEMPLATES[template])
    encoded = encode(tokenizer, rendered)
    for text, token in zip(rendered.spans, encoded.spans, strict=True):
        read = tokenizer.decode(list(encoded.prompt.prompt_ids[token.start : token.stop]))
        piece = rendered.text[text.start : text.stop]
        if template == "arrow":
            assert read == piece
        else:
            # A glued blank moves to the word it stands in front of.
            assert read.strip() == piece.strip()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), min_size=3))
def test_unicode_survives_byte_level_tokenizers(words: list[str]) -> None:
    words = [f"a{word}b" for word in words]
    shown = tuple(Demonstration(word, "x") for word in words[2:])
    rendered = render(Example("t", shown, words[0], words[1]), TEMPLATES["arrow"])
    encoded = encode(ZOO["qwen"], rendered)
    assert encoded.text == rendered.text
    joined = (*encoded.prompt.prompt_ids, *encoded.prompt.answer_ids)
    assert ZOO["qwen"].decode(list(joined)) == rendered.text + rendered.answer
    for text, token in zip(rendered.spans, encoded.spans, strict=True):
        read = ZOO["qwen"].decode(list(encoded.prompt.prompt_ids[token.start : token.stop]))
        assert read == rendered.text[text.start : text.stop]


def test_tie_goes_to_the_later_span() -> None:
    tokenizer = zoo.byte_level([(":", "1")], pattern=r"[\s\S]+")
    shown = (Demonstration("7", "1"),)
    encoded = encode(tokenizer, render(Example("t", shown, "2", "3"), Template("", ":", "", "#")))
    assert tokens(tokenizer, encoded)[0] == ["7", ":1", "#", "2", ":"]
    assert encoded.prompt.roles[1] == Role.LABEL
    separator, label = encoded.spans[1:3]
    assert separator.start == separator.stop == label.start == 1


def test_straddling_boundary_is_refused_with_the_pieces() -> None:
    tokenizer = zoo.byte_level([(">", "1")], pattern=r"[\s\S]+")
    with pytest.raises(TaskError, match=r"inside a token: '7' '-' '>1' '9'.*'>1' holds both"):
        encode_text(tokenizer, "7|->", "19")
    # An answer that does not merge with the arrow is fine.
    assert tokens(tokenizer, encode_text(tokenizer, "7|->", "29"))[1] == ["2", "9"]


def test_prompt_that_reads_differently_alone_is_refused() -> None:
    # The arrow is one token only where a digit follows.
    tokenizer = zoo.byte_level([("-", ">")], pattern=r"->(?=\d)|-|>|\d")
    with pytest.raises(TaskError, match=r"'->'\] in front of the answer but with .*'>'\] alone"):
        encode_text(tokenizer, "7|->", "19")


class TestSpecialTokens:
    @pytest.mark.parametrize("name", ["word_level", "llama3", "metaspace", "metaspace_eos"])
    def test_default_of_tokenizers_with_bos(self, name: str) -> None:
        tokenizer = ZOO[name]
        for add_bos in (None, True):
            encoded = encode_text(tokenizer, "7|->", "19", add_bos=add_bos)
            assert encoded.prompt.prompt_ids.count(tokenizer.bos_token_id) == 1
            assert encoded.prompt.prompt_ids[0] == tokenizer.bos_token_id
            assert encoded.prompt.roles[0] == Role.BOS
        without = encode_text(tokenizer, "7|->", "19", add_bos=False)
        assert tokenizer.bos_token_id not in without.prompt.prompt_ids
        assert without.prompt.prompt_ids == encoded.prompt.prompt_ids[1:]
        assert without.prompt.answer_ids == encoded.prompt.answer_ids

    @pytest.mark.parametrize("name", ["gpt2", "qwen"])
    def test_default_of_tokenizers_without_bos(self, name: str) -> None:
        tokenizer = ZOO[name]
        plain = encode_text(tokenizer, "7|->", "19").prompt.prompt_ids
        assert tokenizer.bos_token_id not in plain
        forced = encode_text(tokenizer, "7|->", "19", add_bos=True).prompt.prompt_ids
        assert forced == (tokenizer.bos_token_id, *plain)

    def test_bos_written_in_the_template_is_not_doubled(self) -> None:
        tokenizer = ZOO["llama3"]
        rendered = render(Example("t", (), "7", "19"), Template(zoo.BOS, "->", "", "#"))
        for add_bos in (None, True):
            ids = encode(tokenizer, rendered, add_bos=add_bos).prompt.prompt_ids
            assert ids.count(tokenizer.bos_token_id) == 1

    def test_no_bos_to_force(self) -> None:
        tokenizer = zoo.byte_level()
        tokenizer.bos_token = None
        encode_text(tokenizer, "7|->", "19")
        with pytest.raises(TaskError, match="has no BOS token"):
            encode_text(tokenizer, "7|->", "19", add_bos=True)


class TestNotScorable:
    def test_unknown_answer(self) -> None:
        with pytest.raises(TaskError, match="'zebra' is not scorable"):
            encode_text(ZOO["word_level"], "7|->", "zebra")

    @pytest.mark.parametrize("answer", ["", " ", "\n"])
    def test_empty_answer(self, answer: str) -> None:
        with pytest.raises(TaskError, match="not scorable"):
            encode_text(ZOO["gpt2"], "7|->", answer)

    def test_slow_tokenizer(self) -> None:
        class Slow:
            is_fast = False

        with pytest.raises(TaskError, match="Slow is not a fast tokenizer"):
            encode_text(Slow(), "7|->", "19")

    def test_normalizer_that_drops_a_side(self) -> None:
        from tokenizers import Regex, normalizers

        tokenizer = zoo.byte_level()
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[^0-9]"), "")
        with pytest.raises(TaskError, match=r"the answer in .* no token of its own"):
            encode_text(tokenizer, "7|->", "x")
        with pytest.raises(TaskError, match="not scorable"):
            encode_text(tokenizer, "x|->", "7")


def test_unknown_prompt_tokens_are_counted() -> None:
    encoded = encode_text(ZOO["word_level"], "zebra|->", "19")
    assert encoded.unknown == 1
    assert encode_text(ZOO["word_level"], "7|->", "19").unknown == 0
    assert encode_text(ZOO["gpt2"], "7|->", "19").unknown == 0


def test_batch_equals_single_and_collates() -> None:
    family = AddK(template="question_answer", x_max=40)
    examples = family.draw(20, stream(0), split="train")
    rendered = [render(example, family.template) for example in examples]
    for tokenizer in ZOO.values():
        encoded = encode_all(tokenizer, rendered)
        assert encoded == [encode(tokenizer, one) for one in rendered]
        assert len(collate([one.prompt for one in encoded], 0)) == 20
    assert encode_all(tokenizer, []) == []


@pytest.mark.parametrize("prompts", [10, 1000])
def test_the_tokenizer_is_called_as_often_for_many_prompts_as_for_few(
    prompts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of the tokenizer costs more than a prompt of the batch that it is given."""
    family, tokenizer, calls = AddK(shots=5), ZOO["word_level"], []
    call = type(tokenizer).__call__

    def counted(self: object, *texts: object, **options: object) -> object:
        calls.append(texts)
        return call(self, *texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    examples = family.draw(prompts, stream(0), split="train")
    encoded = encode_all(tokenizer, [render(example, family.template) for example in examples])
    assert len(encoded) == prompts
    assert 1 <= len(calls) <= 2


def test_rendered_text_need_not_come_from_render() -> None:
    rendered = Rendered("7->", render(ADD_7.zero_shot(), TEMPLATES["arrow"]).spans, "19")
    assert encode(ZOO["word_level"], rendered).prompt.roles == (Role.BOS, Role.QUERY, Role.LAST)
