"""What single demonstrations contribute: signals at their label tokens, and shares of all tokens.

    s_i     = W n_{y_i}, the contribution of demonstration i's label token before attention
    share_t = alpha_t <s_t, u> / <h, u>, signed; the shares of a prompt's tokens sum to 1

with u the task's mean contribution, or its direction: then s and h are taken relative to the mean.
Numerators and denominators are kept per prompt and averaged before dividing.

Shapes: P prompts, B prompts of a chunk, N demonstrations, T columns, G groups of tokens, r
dimensions of the aggregation subspace, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.lm.batch import Role
from headloc.objectives.prompts import encode_examples
from headloc.tasks import Example

from .base import Progress, Subject
from .head_spaces import HeadSpace
from .prompting import ROWS, label_columns
from .prompting import Chunk as PromptChunk
from .reading import LayerReading, read_heads_of

if TYPE_CHECKING:
    from headloc.lm.batch import TokenBatch

GROUPS = {
    "labels": (Role.LABEL,),
    "inputs": (Role.INPUT,),
    "separators": (Role.SEPARATOR,),
    "ends": (Role.END,),
    "query": (Role.QUERY,),
    "last token": (Role.LAST,),
    "other": (Role.BOS, Role.PREFIX, Role.OTHER),
}
"""Groups of prompt tokens by role; together they are the whole prompt."""

SINK = "attention sink"
"""What falls to no token, in models whose attention may look at nothing (gpt_oss)."""

GROUP_NAMES = (*GROUPS, SINK)


@dataclass(frozen=True, slots=True)
class HeadSignals:
    """One head on P prompts with N demonstrations each.

    Attributes:
        signal_PNr: coordinates of s_i in the aggregation subspace, raw (not centred).
        attention_PN: attention from the last prompt token to the label tokens.
        output_Pr: coordinates of the head's output h.
        numerator_PG: sum over a group of alpha_t <s_t, u>, u the mean contribution of the task.
        denominator_P: <h, u>.
        centred_numerator_PG: the same relative to the cross-task mean, u the task's direction.
        centred_denominator_P: <h - mu, u>.
        on_labels_P: mean attention on label tokens.
        elsewhere_P: mean attention on the other tokens of the prompt.
    """

    signal_PNr: NDArray[np.float64]
    attention_PN: NDArray[np.float64]
    output_Pr: NDArray[np.float64]
    numerator_PG: NDArray[np.float64]
    denominator_P: NDArray[np.float64]
    centred_numerator_PG: NDArray[np.float64]
    centred_denominator_P: NDArray[np.float64]
    on_labels_P: NDArray[np.float64]
    elsewhere_P: NDArray[np.float64]


def read_demonstrations(
    subject: Subject,
    spaces: Sequence[HeadSpace],
    size: int,
    examples: Sequence[Example],
    *,
    attention: bool = True,
    rows: int = ROWS,
    progress: Progress | None = None,
) -> list[HeadSignals]:
    """Read the signals of every demonstration, one entry per head.

    Memory grows with `rows` alone, apart from a few numbers per prompt that are the result.

    Args:
        subject: the circuit with its model and task.
        spaces: the heads with their subspaces.
        size: dimensions r.
        examples: prompts with equally many demonstrations.
        attention: without it only `signal_PNr` and `output_Pr` mean anything, at less cost.
        rows: prompts that are read together.
        progress: called with (prompts done, prompts in all).
    """
    parts: list[list[dict[str, Tensor]]] = [[] for _ in spaces]
    heads = [space.head for space in spaces]
    task_rows = {task: row for row, task in enumerate(spaces[0].tasks)}
    for start in range(0, len(examples), rows):
        some = tuple(examples[start : start + rows])
        encoded, batch = encode_examples(subject.lm, some, subject.task.template)
        chunk = PromptChunk(slice(start, start + len(some)), some, encoded, batch, None)
        readings = read_heads_of(subject.lm, batch, heads, attention=attention)
        rows_B = torch.tensor([task_rows[example.task] for example in some])
        labels_BN = label_columns(chunk)
        for part, space in zip(parts, spaces, strict=True):
            reading = readings[space.position]
            part.append(_measure(space, size, reading, batch, labels_BN, rows_B))
        if progress is not None:
            progress(chunk.rows.stop, len(examples))
    return [
        HeadSignals(**{
            name: torch.cat([piece[name] for piece in part]).numpy() for name in part[0]
        })
        for part in parts
    ]  # fmt: skip


def _measure(
    space: HeadSpace,
    size: int,
    reading: LayerReading,
    batch: TokenBatch,
    labels_BN: Tensor,
    task_B: Tensor,
) -> dict[str, Tensor]:
    """Return what is kept of one head on a chunk, float64 on the CPU."""
    row = reading.heads.index(space.head.head)
    values_BTd = reading.values_BHTd[:, row].double().cpu()
    attention_BT = reading.attention_BHT[:, row].double().cpu()
    z_Bd = reading.z_BHd[:, row].double().cpu()
    labels_BN = labels_BN.cpu()
    role_BT = batch.role_BT[:, : attention_BT.shape[1]].cpu()
    readout_dr = space.readout(space.basis(size))
    across_BN = torch.arange(len(labels_BN))[:, None]
    mean_Bd = space.z_Kd[task_B]
    metric_dd = space.weight_dD @ space.weight_dD.T
    centre_d = space.center_d
    zero_d = torch.zeros_like(centre_d)
    plain = shares(attention_BT, values_BTd, z_Bd, mean_Bd @ metric_dd, role_BT, zero_d)
    direction_Bd = (mean_Bd - centre_d) @ metric_dd
    centred = shares(attention_BT, values_BTd, z_Bd, direction_Bd, role_BT, centre_d)
    on_labels_B, elsewhere_B = attention_means(attention_BT, labels_BN, role_BT >= 0)
    return {
        "signal_PNr": values_BTd[across_BN, labels_BN] @ readout_dr,
        "attention_PN": attention_BT[across_BN, labels_BN],
        "output_Pr": z_Bd @ readout_dr,
        "numerator_PG": plain[0],
        "denominator_P": plain[1],
        "centred_numerator_PG": centred[0],
        "centred_denominator_P": centred[1],
        "on_labels_P": on_labels_B,
        "elsewhere_P": elsewhere_B,
    }


def shares(
    attention_BT: Tensor,
    values_BTd: Tensor,
    z_Bd: Tensor,
    toward_Bd: Tensor,
    role_BT: Tensor,
    centre_d: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return (numerator_BG, denominator_B) of the shares of `GROUP_NAMES`.

    Args:
        attention_BT: attention from the last prompt token.
        values_BTd: values of every token.
        z_Bd: the head's output, sum_t attention_t values_t.
        toward_Bd: direction, as a functional of values.
        role_BT: role of every token, below 0 on padding.
        centre_d: what values and output are taken relative to.
    """
    each_BT = attention_BT * torch.einsum("btd,bd->bt", values_BTd - centre_d, toward_Bd)
    columns = []
    for roles in GROUPS.values():
        inside_BT = torch.isin(role_BT, torch.tensor([int(role) for role in roles]))
        columns.append((each_BT * inside_BT).sum(1))
    # A sink holds no value, so relative to the centre it holds minus the centre.
    columns.append((1 - attention_BT.sum(1)) * (-centre_d * toward_Bd).sum(1))
    return torch.stack(columns, dim=1), ((z_Bd - centre_d) * toward_Bd).sum(1)


def attention_means(
    attention_BT: Tensor, labels_BN: Tensor, real_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean attention on label tokens and on the other real tokens, each [B]."""
    label_BT = torch.zeros_like(real_BT).scatter_(1, labels_BN, True)
    rest_BT = real_BT & ~label_BT
    return tuple(
        (attention_BT * kind).sum(1) / kind.sum(1).clamp(min=1) for kind in (label_BT, rest_BT)
    )  # type: ignore[return-value]
