"""Edges between named spans of a prompt: from which tokens to which information may not flow.

Shapes: B rows, T columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.tasks.template import SpanKind

from .base import NotApplicable

if TYPE_CHECKING:
    from headloc.tasks import Encoded

    from .prompting import Chunk

EDGES = ("text to its label", "text to next label", "query to last token", "labels to last token")
"""What can be cut: each demonstration's text to the tokens behind it up to its label; the same to
the label of the next demonstration, as a control; the query to the tokens behind it; all labels to
the last token."""


def blocked_edges(chunk: Chunk, edge: str) -> Tensor:
    """Return the pairs (token, looked at) that an edge cuts, blocked_BTT on the CPU.

    Raises:
        NotApplicable: when the tokens of an edge cannot be told apart in a prompt.
    """
    rows, columns = chunk.batch.ids_BT.shape
    blocked_BTT = torch.zeros(rows, columns, columns, dtype=torch.bool)
    for row, item in enumerate(chunk.encoded):
        front = chunk.batch.prompt_columns - len(item.prompt.prompt_ids)
        last = chunk.batch.prompt_columns - 1
        for to, source in _pairs(item, edge, last - front):
            for token in to:
                for seen in source:
                    blocked_BTT[row, front + token, front + seen] = True
    return blocked_BTT


def _pairs(item: Encoded, edge: str, last: int) -> list[tuple[list[int], list[int]]]:
    shots = sum(span.kind == "label" for span in item.spans)
    if edge == "query to last token":
        source = _tokens(item, ("query",))
        to = list(range(max(source, default=last) + 1, last + 1))
        if not source or not to:
            raise NotApplicable(
                "The query has no token of its own before the last one: use a template with a "
                "separator that stands apart."
            )
        return [(to, source)]
    if edge == "labels to last token":
        return [([last], _tokens(item, ("label",)))]
    step = 1 if edge == "text to next label" else 0
    found = []
    for n in range(shots - step):
        source = _tokens(item, ("input",), n)
        # What stands between a text and its label may carry the text on: it counts as the label.
        to = _tokens(item, ("label", "separator"), n + step)
        if not source or not _tokens(item, ("label",), n + step):
            raise NotApplicable("A text or a label has no token of its own.")
        found.append(([t for t in to if t > max(source)], source))
    return found


def _tokens(
    item: Encoded, kinds: Sequence[SpanKind], demonstration: int | None = None
) -> list[int]:
    return [
        token
        for span in item.spans
        if span.kind in kinds and (demonstration is None or span.demonstration == demonstration)
        for token in range(span.start, span.stop)
    ]
