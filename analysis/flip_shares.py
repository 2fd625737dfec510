"""How much of a head's change comes from attention, and how much from values: exact shares.

What a head writes about a label is the sum of alpha_t M(vo_t) over tokens.  Between a prompt and
its twin, with every token of one paired with a token of the other,

    d sum alpha M = sum d(alpha) mean(M)  +  sum mean(alpha) d(M)
                    QK share                 OV share

without a remainder.  Label tokens can be paired by label (foo with foo, on another text) or by
place (the same text, under another label): by label, a change that follows the label is a change
of attention; by place it is a change of values.  All other tokens are paired by place.

Shapes: B rows, T columns, N demonstrations.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

PAIRINGS = ("by label", "by place")


@dataclass(frozen=True, slots=True)
class Change:
    """The change of what a head writes about a label, [B] each.

    Attributes:
        total_B: the change.
        attention_B: its QK part.
        value_B: its OV part.
    """

    total_B: Tensor
    attention_B: Tensor
    value_B: Tensor


def change(
    attention_BT: Tensor,
    contrast_BT: Tensor,
    twin_attention_BT: Tensor,
    twin_contrast_BT: Tensor,
) -> Change:
    """Return the exact split, column t of the one paired with column t of the other."""
    before_B = (attention_BT * contrast_BT).sum(1)
    after_B = (twin_attention_BT * twin_contrast_BT).sum(1)
    rise_BT = twin_attention_BT - attention_BT
    gain_BT = twin_contrast_BT - contrast_BT
    return Change(
        after_B - before_B,
        (rise_BT * (contrast_BT + twin_contrast_BT) / 2).sum(1),
        (gain_BT * (attention_BT + twin_attention_BT) / 2).sum(1),
    )


def paired_columns(columns: int, columns_BN: Tensor, partner_BN: Tensor) -> Tensor:
    """Return the twin's column that each column of a prompt is paired with, [B, T].

    Args:
        columns: number T of columns.
        columns_BN: the label tokens.
        partner_BN: for each demonstration, the twin's demonstration that it is paired with.
    """
    import torch

    index_T = torch.arange(columns, device=columns_BN.device)
    index_BT = index_T.expand(len(columns_BN), -1).clone()
    return index_BT.scatter(1, columns_BN, columns_BN.gather(1, partner_BN))
