"""Rendered text, character by character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headloc.errors import TaskError
from headloc.tasks import TEMPLATES, Demonstration, Example, Template, render, resolve_template

EXAMPLE = Example("add_7", (Demonstration("12", "19"), Demonstration("30", "37")), "8", "15")
WORDS = st.text(min_size=1).filter(str.strip)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("arrow", "12->19#30->37#8->"),
        ("question_answer", "Question:12\nAnswer:19\nQuestion:30\nAnswer:37\nQuestion:8\nAnswer:"),
        ("input_output", "Input:12\nOutput:19\nInput:30\nOutput:37\nInput:8\nOutput:"),
        ("a_b", "A:12\nB:19\nA:30\nB:37\nA:8\nB:"),
        ("text_label", "text:12\nlabel:19\ntext:30\nlabel:37\ntext:8\nlabel:"),
        ("x_fx", "x:12\nf(x):19\nx:30\nf(x):37\nx:8\nf(x):"),
        ("colon", "12 : 19 30 : 37 8 : "),
    ],
)
def test_named_templates(name: str, text: str) -> None:
    rendered = render(EXAMPLE, resolve_template(name))
    assert rendered.text == text
    assert rendered.answer == "15"


def test_zero_shot() -> None:
    rendered = render(EXAMPLE.zero_shot(), TEMPLATES["arrow"])
    assert rendered.text == "8->"
    assert [span.kind for span in rendered.spans] == ["query", "query_separator"]


@given(st.lists(st.tuples(WORDS, WORDS), max_size=4), WORDS, st.sampled_from(sorted(TEMPLATES)))
def test_spans_cover_the_text_and_name_its_pieces(
    pairs: list[tuple[str, str]], query: str, name: str
) -> None:
    example = Example("t", tuple(Demonstration(*pair) for pair in pairs), query, "y")
    rendered = render(example, TEMPLATES[name])
    pieces = [rendered.text[span.start : span.stop] for span in rendered.spans]
    assert "".join(pieces) == rendered.text
    assert all(pieces)
    by_kind = list(zip(rendered.spans, pieces, strict=True))
    for kind, column in (("input", 0), ("label", 1)):
        found = [(span.demonstration, text) for span, text in by_kind if span.kind == kind]
        assert found == [(index, pair[column]) for index, pair in enumerate(pairs)]
    assert [text for span, text in by_kind if span.kind == "query"] == [query]


def test_mapping_makes_a_template() -> None:
    pieces = {"in_pre": "<", "in_sep": "=", "out_pre": "", "out_sep": ">"}
    assert resolve_template(pieces) == Template("<", "=", "", ">")
    assert render(EXAMPLE, resolve_template(pieces)).text == "<12=19><30=37><8="
    assert resolve_template(Template("", "=", "", ";")).in_sep == "="


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("arow", "no template 'arow'. Did you mean 'arrow'"),
        ("zzz", "Known: a_b, arrow"),
        ({"in_pre": ""}, "exactly the keys in_pre, in_sep, out_pre, out_sep; given: in_pre"),
        ({"in_pre": "", "in_sep": 1, "out_pre": "", "out_sep": "#"}, "in_sep is 1"),
        ({"in_pre": "a", "in_sep": "", "out_pre": "", "out_sep": "#"}, "run into its label"),
        ({"in_pre": "", "in_sep": ">", "out_pre": "", "out_sep": ""}, "the next input"),
        (7, "a name or a mapping, not 7"),
    ],
)
def test_wrong_templates(spec: object, message: str) -> None:
    with pytest.raises(TaskError, match=message.replace("(", r"\(")):
        resolve_template(spec)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "example",
    [
        Example("t", (), " ", "y"),
        Example("t", (Demonstration("", "y"),), "x", "y"),
        Example("t", (Demonstration("x", ""),), "x", "y"),
    ],
)
def test_empty_pieces_are_refused(example: Example) -> None:
    with pytest.raises(TaskError, match="at least one visible character"):
        render(example, TEMPLATES["arrow"])


def test_example_values() -> None:
    assert EXAMPLE.shots == 2
    assert EXAMPLE.to_dict() == {
        "task": "add_7",
        "demonstrations": [["12", "19"], ["30", "37"]],
        "query": "8",
        "answer": "15",
    }
