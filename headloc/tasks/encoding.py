"""From rendered text to tokens: prompt and answer are tokenised together and split by characters.

The answer is never tokenised alone, because its tokens depend on what is in front of it (`19` after
a blank is one, two or three tokens, depending on the tokenizer).  The boundary is chosen
so that the first scored token carries content: it is the one with the answer's first visible
character.  Blanks between the two belong to it where the tokenizer glues them to it (` 19` is one
token), and otherwise stay at the end of the prompt as tokens of their own.

Where no clean boundary exists the prompt is refused rather than scored wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headloc.errors import TaskError
from headloc.tasks.boundary import Pieces, check_prefix, normalise_offsets, split_answer
from headloc.tasks.template import Rendered, Span, SpanKind

if TYPE_CHECKING:
    from headloc.lm.batch import EncodedPrompt


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """Tokens `start..stop` of a prompt that belong to one span of its text.

    `start == stop` where no token holds most of its characters in the span, such as a blank that
    the tokenizer glues to the next word.
    """

    kind: SpanKind
    demonstration: int | None
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded prompt, one token span per text span, and the text of the prompt's own tokens.

    Attributes:
        prompt: token ids of prompt and answer, and the role of each prompt token.
        spans: in the order of the rendered spans, which cover the prompt apart from BOS.
        text: what the prompt's tokens stand for, so without blanks that the answer took.
        unknown: number of prompt tokens the tokenizer does not know; the model cannot read these.
    """

    prompt: EncodedPrompt
    spans: tuple[TokenSpan, ...]
    text: str
    unknown: int = 0


def encode(tokenizer: Any, rendered: Rendered, *, add_bos: bool | None = None) -> Encoded:
    """Encode one prompt; see `encode_all`."""
    return encode_all(tokenizer, [rendered], add_bos=add_bos)[0]


def encode_all(
    tokenizer: Any, rendereds: Sequence[Rendered], *, add_bos: bool | None = None
) -> list[Encoded]:
    """Encode many prompts with two batched calls of the tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers, or anything that behaves like one.
        rendereds: the prompts.
        add_bos: None leaves the special tokens in front to the tokenizer's default, True makes sure
            that BOS stands in front (once), False leaves out every special token.

    Raises:
        TaskError: when the tokenizer has no offsets (or no BOS although one is asked for), an
            answer is not scorable, or the boundary between prompt and answer is ambiguous.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TaskError(
            f"The tokenizer {type(tokenizer).__name__} is not a fast tokenizer, so it cannot tell "
            "which characters a token stands for. Save it with a tokenizer.json (a fast tokenizer)."
        )
    bos = getattr(tokenizer, "bos_token_id", None)
    if add_bos and bos is None:
        raise TaskError(
            "add_bos=True, but the tokenizer has no BOS token. Leave add_bos at its default (None)."
        )
    if not rendereds:
        return []
    for rendered in rendereds:
        _check_answer(rendered)
    pieces = [
        _pieces(*row) for row in zip(rendereds, *_tokenise(tokenizer, rendereds), strict=True)
    ]
    cuts = [split_answer(piece) for piece in pieces]
    _check_prompts(tokenizer, pieces, cuts)
    return [
        _encoded(tokenizer, rendered, piece, cut, _front(piece, bos, add_bos))
        for rendered, piece, cut in zip(rendereds, pieces, cuts, strict=True)
    ]


def _check_answer(rendered: Rendered) -> None:
    if not rendered.answer.strip():
        raise TaskError(
            f"The answer {rendered.answer!r} to the prompt {rendered.text[-60:]!r} is not "
            "scorable: it has no visible character. Give every item an answer."
        )


def _tokenise(tokenizer: Any, rendereds: Sequence[Rendered]) -> tuple[Any, Any, Any]:
    batch = tokenizer(
        [rendered.text + rendered.answer for rendered in rendereds],
        add_special_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        padding=False,
        truncation=False,
    )
    return batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"]


def _pieces(
    rendered: Rendered, ids: list[int], offsets: list[tuple[int, int]], special: list[int]
) -> Pieces:
    """Separate the tokenizer's own special tokens, in front and behind, from the content."""
    front = next((i for i, flag in enumerate(special) if not flag), len(ids))
    back = next((i for i, flag in enumerate(reversed(special)) if not flag), 0)
    stop = len(ids) - back
    text, boundary = rendered.text + rendered.answer, len(rendered.text.rstrip())
    return Pieces(
        text=text,
        boundary=boundary,
        content=len(text) - len(text[boundary:].lstrip()),
        front=tuple(ids[:front]),
        ids=tuple(ids[front:stop]),
        offsets=normalise_offsets(offsets[front:stop]),
    )


def _check_prompts(tokenizer: Any, pieces: Sequence[Pieces], cuts: Sequence[int]) -> None:
    """Compare each prompt's tokens with those it has when it stands alone, as in generation."""
    prompts = [
        piece.text[: piece.offsets[cut - 1][1]] for piece, cut in zip(pieces, cuts, strict=True)
    ]
    alone = tokenizer(prompts, add_special_tokens=False, padding=False, truncation=False)[
        "input_ids"
    ]
    for piece, cut, ids in zip(pieces, cuts, alone, strict=True):
        check_prefix(tokenizer, piece, cut, ids)


def _front(piece: Pieces, bos: int | None, add_bos: bool | None) -> tuple[int, ...]:
    """The special tokens to put in front; never a BOS where the text brings its own."""
    front = () if add_bos is False else piece.front
    if bos is None:
        return front
    if piece.ids[0] == bos:
        return tuple(token for token in front if token != bos)
    return (bos, *front) if add_bos and bos not in front else front


def _encoded(
    tokenizer: Any, rendered: Rendered, piece: Pieces, cut: int, front: tuple[int, ...]
) -> Encoded:
    from headloc.lm.batch import EncodedPrompt

    answer, content = piece.ids[cut:], piece.ids[:cut]
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in answer:
        raise TaskError(
            f"The answer {rendered.answer!r} is not scorable: the tokenizer has no token for all "
            "of it. Use answers that the model's vocabulary covers."
        )
    owners = _owners(rendered.spans, piece, cut)
    roles = _roles(rendered.spans, owners, len(front))
    prompt = EncodedPrompt(front + content, answer, roles)
    spans = _token_spans(rendered.spans, owners, len(front))
    return Encoded(prompt, spans, piece.text[: piece.offsets[cut - 1][1]], content.count(unknown))


def _owners(spans: Sequence[Span], piece: Pieces, cut: int) -> list[int]:
    """For each prompt token the span that holds most of its characters; ties go to the later."""
    of_char = [i for i, span in enumerate(spans) for _ in range(span.start, span.stop)]
    # Blanks in front of the answer's own text may be prompt tokens: they extend the last span.
    of_char += [len(spans) - 1] * (piece.content + 1 - len(of_char))
    owners = []
    for start, stop in piece.offsets[:cut]:
        first, last = of_char[start], of_char[max(start, stop - 1)]
        if first != last:
            held = of_char[start:stop]
            first = max(set(held), key=lambda i: (held.count(i), i))
        owners.append(first)
    return owners


def _roles(spans: Sequence[Span], owners: Sequence[int], front: int) -> tuple[int, ...]:
    from headloc.lm.batch import Role

    role: dict[str, int] = {
        "prefix": Role.PREFIX,
        "input": Role.INPUT,
        "separator": Role.SEPARATOR,
        "label": Role.LABEL,
        "end": Role.END,
        "query": Role.QUERY,
        "query_separator": Role.SEPARATOR,
    }
    roles = [int(Role.BOS)] * front + [int(role[spans[owner].kind]) for owner in owners]
    return (*roles[:-1], int(Role.LAST))


def _token_spans(spans: Sequence[Span], owners: Sequence[int], front: int) -> tuple[TokenSpan, ...]:
    out, position = [], 0
    for index, span in enumerate(spans):
        start = position
        while position < len(owners) and owners[position] == index:
            position += 1
        out.append(TokenSpan(span.kind, span.demonstration, front + start, front + position))
    return tuple(out)
