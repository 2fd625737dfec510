"""Few-shot prompts as token-id tensors, with the weight of every predicted token.

The text of a prompt is ``<bos>``, then each demonstration ``{x}->{y}#``, then ``{x}->``; other
templates change the pieces around x and y. Rendering is vectorised: no string is built.

Shapes: B prompts, N demonstrations, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from headloc.bundled.tokenizer import BOS, pieces


@dataclass(frozen=True)
class Template:
    """The text around a demonstration's input and label."""

    before: str
    between: str
    after: str


ARROW_TEMPLATE = Template("", "->", "#")
#: Other ways to write the same prompts; a small share of the add-k prompts uses them.
RARE_TEMPLATES = (
    Template("Question:", "\nAnswer:", "\n"),
    Template("Input:", "\nOutput:", "\n"),
    Template("A:", "\nB:", "\n"),
    Template("text:", "\nlabel:", "\n"),
    Template("x:", "\nf(x):", "\n"),
)


@dataclass(frozen=True)
class Batch:
    """Sequences of one length: inputs, the next token at each position, and its loss weight.

    A weight of one marks an answer; everything else that is scored weighs less.
    """

    ids_BT: Tensor
    next_BT: Tensor
    weights_BT: Tensor

    @property
    def answers_B(self) -> Tensor:
        """The token after the last position: the query's answer."""
        return self.next_BT[:, -1]


@dataclass(frozen=True)
class PromptWeights:
    """Loss weights of a prompt's labels [B, N], of its fixed tokens and of its notes."""

    labels_BN: Tensor
    structure: float
    notes: float = 0.0


def render(
    inputs_BN: Tensor,
    labels_BN: Tensor,
    query_B: Tensor,
    answer_B: Tensor,
    weights: PromptWeights,
    vocabulary: Mapping[str, int],
    template: Template = ARROW_TEMPLATE,
    notes_BN: Tensor | None = None,
) -> Batch:
    """Lay out demonstrations and query; the answer is the last position's next token.

    Notes are tokens that follow the labels of the demonstrations.
    """
    rows, shots = inputs_BN.shape
    before, between, after = (
        torch.tensor([vocabulary[piece] for piece in pieces(text)], dtype=torch.long)
        for text in (template.before, template.between, template.after)
    )

    def fixed(ids: Tensor, *lead: int) -> Tensor:
        return ids.expand(*lead, len(ids))

    demos_BNT = torch.cat(
        [
            fixed(before, rows, shots),
            inputs_BN[..., None],
            fixed(between, rows, shots),
            labels_BN[..., None],
            *(() if notes_BN is None else (notes_BN[..., None],)),
            fixed(after, rows, shots),
        ],
        dim=2,
    )
    demo_weights_BNT = torch.full(demos_BNT.shape, weights.structure)
    demo_weights_BNT[..., len(before)] = 0.0
    demo_weights_BNT[..., len(before) + 1 + len(between)] = weights.labels_BN
    if notes_BN is not None:
        demo_weights_BNT[..., len(before) + 2 + len(between)] = weights.notes
    bos = torch.tensor([vocabulary[BOS]])
    full_BT = torch.cat(
        [
            fixed(bos, rows),
            demos_BNT.flatten(1),
            fixed(before, rows),
            query_B[:, None],
            fixed(between, rows),
            answer_B[:, None],
        ],
        dim=1,
    )
    tail = torch.full((rows, len(before) + 1 + len(between) + 1), weights.structure)
    tail[:, len(before)] = 0.0
    tail[:, -1] = 1.0
    weights_BT = torch.cat([demo_weights_BNT.flatten(1), tail], dim=1)
    return Batch(full_BT[:, :-1].contiguous(), full_BT[:, 1:].contiguous(), weights_BT)
