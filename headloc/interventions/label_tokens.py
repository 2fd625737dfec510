"""Which tokens of a batch are labels, and how often each label is shown.

Shapes: B rows, T columns, P prompt columns.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.lm.batch import Role

if TYPE_CHECKING:
    from headloc.lm.batch import TokenBatch


@dataclass(frozen=True, slots=True)
class ShownLabel:
    """The label of one demonstration.

    Attributes:
        column: column of its last token.
        ids: all of its tokens.
    """

    column: int
    ids: tuple[int, ...]


def shown_labels(batch: TokenBatch) -> list[list[ShownLabel]]:
    """Return the labels that each row shows, in order: runs of tokens with the label's role."""
    rows = []
    for roles, ids in zip(batch.role_BT.tolist(), batch.ids_BT.tolist(), strict=True):
        found: list[ShownLabel] = []
        start = None
        for column, role in enumerate([*roles[: batch.prompt_columns], -1]):
            if role == Role.LABEL:
                start = column if start is None else start
            elif start is not None:
                found.append(ShownLabel(column - 1, tuple(ids[start:column])))
                start = None
        rows.append(found)
    return rows


def minority_weights(batch: TokenBatch, factor: float) -> Tensor:
    """Return factor * (majority count / own count) at label tokens of minority labels, [B, P].

    Zero everywhere else, and in rows that show all their labels equally often.
    """
    weights_BP = torch.zeros(len(batch), batch.prompt_columns, dtype=torch.float64)
    for row, labels in enumerate(shown_labels(batch)):
        counts = Counter(label.ids for label in labels)
        most = max(counts.values(), default=0)
        for label in labels:
            if counts[label.ids] < most:
                weights_BP[row, label.column] = factor * most / counts[label.ids]
    return weights_BP
