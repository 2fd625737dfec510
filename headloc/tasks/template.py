"""Templates turn an example into text and remember what every character is.

A demonstration is rendered as `in_pre + x + in_sep + out_pre + y + out_sep`, the query as
`in_pre + x + in_sep + out_pre` (Hu et al. 2025).  The default, `arrow`, gives `12->19#30->37#8->`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Literal

from headloc.errors import TaskError, suggest
from headloc.tasks.example import Example

SpanKind = Literal["prefix", "input", "separator", "label", "end", "query", "query_separator"]


@dataclass(frozen=True, slots=True)
class Template:
    """The four pieces of text around inputs and labels.

    Raises:
        TaskError: when a piece is not text, or when nothing would separate an input from its label
            or a label from the next input.
    """

    in_pre: str
    in_sep: str
    out_pre: str
    out_sep: str

    def __post_init__(self) -> None:
        for name, text in asdict(self).items():
            if not isinstance(text, str):
                raise TaskError(
                    f"The template's {name} is {text!r}; it must be text (maybe empty)."
                )
        if not self.in_sep + self.out_pre:
            raise TaskError(
                "The template has an empty in_sep and an empty out_pre, so an input would run into "
                'its label. Give one of them some text, for example in_sep="->".'
            )
        if not self.out_sep + self.in_pre:
            raise TaskError(
                "The template has an empty out_sep and an empty in_pre, so a label would run into "
                'the next input. Give one of them some text, for example out_sep="#".'
            )


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {
        "arrow": Template("", "->", "", "#"),
        "question_answer": Template("Question:", "\n", "Answer:", "\n"),
        "input_output": Template("Input:", "\n", "Output:", "\n"),
        "a_b": Template("A:", "\n", "B:", "\n"),
        "text_label": Template("text:", "\n", "label:", "\n"),
        "x_fx": Template("x:", "\n", "f(x):", "\n"),
        # Yu & Ananiadou 2024: "S0 : bar S1 : bar S2 :"; `encode` moves the last blank into the
        # answer.
        "colon": Template("", " :", " ", " "),
    }
)
"""The templates known by name."""


def resolve_template(spec: str | Mapping[str, str] | Template) -> Template:
    """A template by its name, or from a mapping with the four keys.

    Raises:
        TaskError: when the name is unknown, or the mapping's keys are not the four.
    """
    if isinstance(spec, Template):
        return spec
    if isinstance(spec, str):
        if spec not in TEMPLATES:
            raise TaskError(f"There is no template {spec!r}. {suggest(spec, TEMPLATES)}")
        return TEMPLATES[spec]
    if not isinstance(spec, Mapping):
        raise TaskError(f"A template is a name or a mapping, not {spec!r}.")
    keys = [field.name for field in fields(Template)]
    if set(spec) != set(keys):
        raise TaskError(
            f"A template needs exactly the keys {', '.join(keys)}; "
            f"given: {', '.join(map(str, spec)) or 'none'}."
        )
    return Template(**{key: spec[key] for key in keys})


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start..stop` of a prompt; `demonstration` is None in the query's part."""

    kind: SpanKind
    demonstration: int | None
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt's text, its spans in order (together they cover the text), and the answer."""

    text: str
    spans: tuple[Span, ...]
    answer: str


def render(example: Example, template: Template) -> Rendered:
    """Render an example's prompt; pieces of no length have no span.

    Raises:
        TaskError: when an input, a label or the whole prompt is empty.
    """
    pieces: list[tuple[SpanKind, int | None, str]] = []
    separator = template.in_sep + template.out_pre
    for index, shown in enumerate(example.demonstrations):
        pieces += [
            ("prefix", index, template.in_pre),
            ("input", index, _filled("input", shown.input, example)),
            ("separator", index, separator),
            ("label", index, _filled("label", shown.output, example)),
            ("end", index, template.out_sep),
        ]
    pieces += [
        ("prefix", None, template.in_pre),
        ("query", None, _filled("query", example.query, example)),
        ("query_separator", None, separator),
    ]
    return _join(pieces, example.answer)


def _filled(what: str, text: str, example: Example) -> str:
    if not text.strip():
        raise TaskError(
            f"An example of task {example.task!r} has an empty {what}. "
            "Every input and label needs at least one visible character."
        )
    return text


def _join(pieces: list[tuple[SpanKind, int | None, str]], answer: str) -> Rendered:
    spans: list[Span] = []
    start = 0
    for kind, index, text in pieces:
        if text:
            spans.append(Span(kind, index, start, start + len(text)))
            start += len(text)
    return Rendered("".join(text for _, _, text in pieces), tuple(spans), answer)
