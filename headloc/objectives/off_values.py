"""What a closed head puts out: zero, its mean over tasks, or its output on a counterfactual prompt.

z' = g z + (1 - g) base with base zero, the cross-task mean, or a resampled output; the
same holds for m, what a feed-forward block adds to the residual stream, where these are gated.

The mean is kept per *role* of a token (last prompt token, label, separator, ...), because what a
head writes at the last token has little to do with what it writes elsewhere.  It is estimated on
prompts of its own random stream over the training tasks, never on prompts that are trained on or
scored.

Shapes: B rows, T columns, J predicting columns, S tokens, R roles, H heads of a layer, d head
width, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from headloc.errors import CircuitError, HeadlocError, suggest
from headloc.lm.batch import Role, TokenBatch
from headloc.lm.components import OffValues, read_components
from headloc.lm.finite import check_means
from headloc.lm.passes import in_passes
from headloc.objectives.prompts import ROWS_PER_PASS, Progress
from headloc.objectives.stored_means import stored_means

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

OffKind = Literal["zero", "mean", "shuffled", "resample"]

ESTIMATED = ("mean", "shuffled")
"""Off-values that are means over prompts: few-shot ones, or the same with their labels shuffled."""


def check_off_value(kind: str) -> OffKind:
    """Return `kind` if it is a known off-value.

    Raises:
        HeadlocError: otherwise, with the closest name.
    """
    known = get_args(OffKind)
    if kind not in known:
        raise HeadlocError(f"objective.off_value={kind!r} is unknown. {suggest(str(kind), known)}")
    return kind  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class RoleMeans:
    """Mean outputs by token role.

    Attributes:
        means: per layer the mean head outputs, a float tensor mean_RHd.
        counts_R: tokens of each role behind them.
        mlps: per feed-forward block the mean output mean_RD; empty where only heads were read.
    """

    means: tuple[Tensor, ...]
    counts_R: Tensor
    mlps: tuple[Tensor, ...] = ()

    def with_answers(self) -> RoleMeans:
        """Return means that are known for answer tokens as well.

        Where no prompt behind the means had an answer of several tokens, an answer token takes the
        mean of the last prompt token: the nearest that is known, as both predict the answer.  Its
        own mean would be zero, which is another off-value.
        """
        if float(self.counts_R[int(Role.ANSWER)]) > 0:
            return self
        return RoleMeans(
            tuple(_answer_like_last(mean_R) for mean_R in self.means),
            self.counts_R,
            tuple(_answer_like_last(mean_R) for mean_R in self.mlps),
        )

    def require(self, role_BT: Tensor) -> None:
        """Refuse prompts with tokens whose role no prompt behind the means had.

        Raises:
            HeadlocError: naming the roles.
        """
        known_R = self.counts_R.cpu() > 0
        known_R[int(Role.ANSWER)] |= known_R[int(Role.LAST)]
        used = role_BT[role_BT >= 0].unique().tolist()
        missing = [Role(role).name for role in used if not bool(known_R[role])]
        if missing:
            raise HeadlocError(
                "The mean off-values were estimated on prompts without tokens of the role "
                f"{', '.join(missing)}, which these prompts have (another template?), so those "
                "tokens would be set to zero. Use the template that the means were estimated on, "
                "objective.positions=last, or objective.off_value=zero."
            )

    def at(self, role_BT: Tensor) -> OffValues:
        """Return the means z_BTHd and m_BTD for tokens of these roles; padding gets role 0."""
        role_BT = role_BT.clamp(min=0)
        mlps = [mean_RD[role_BT.to(mean_RD.device)] for mean_RD in self.mlps]
        heads = [mean_RHd[role_BT.to(mean_RHd.device)] for mean_RHd in self.means]
        return OffValues(heads, mlps or None)

    def at_last(self) -> OffValues:
        """Return the means z_11Hd and m_11D at the last prompt token."""
        last = int(Role.LAST)
        mlps = [mean_RD[last][None, None] for mean_RD in self.mlps]
        return OffValues([mean_RHd[last][None, None] for mean_RHd in self.means], mlps or None)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what a circuit stores: one tensor per layer and block, and the counts."""
        tensors = {f"off/{i:03d}": mean.contiguous() for i, mean in enumerate(self.means)}
        tensors |= {f"off_mlp/{i:03d}": mean.contiguous() for i, mean in enumerate(self.mlps)}
        return {**tensors, "off/counts": self.counts_R}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], lm: FrozenLM, *, mlps: bool = False
    ) -> RoleMeans:
        """Read back what `to_tensors` gave.

        Args:
            tensors: the tensors of a circuit.
            lm: the model that they are used in.
            mlps: whether means of feed-forward blocks are needed.

        Raises:
            CircuitError: when they are missing, or are those of another model.
        """
        counts_R = tensors.get("off/counts")
        if counts_R is None or tuple(counts_R.shape) != (len(Role),):
            raise CircuitError(
                "The circuit was found with mean off-values but does not hold them. "
                "Save it again from the run that made it."
            )
        heads, blocks = stored_means(tensors, "off", len(Role), lm, mlps=mlps)
        return cls(heads, counts_R, blocks)


@torch.no_grad()
def role_means(
    lm: FrozenLM,
    batch: TokenBatch,
    *,
    predicting_only: bool,
    mlps: bool = False,
    progress: Progress | None = None,
) -> RoleMeans:
    """Average the head outputs of a batch by token role, in float32 or better.

    Args:
        lm: the frozen model.
        batch: prompts drawn for this purpose alone.
        predicting_only: read the predicting columns only (enough when only those are gated).
        mlps: average the outputs of the feed-forward blocks as well.
        progress: called with (rows done, rows in all).

    Raises:
        NonFiniteError: when a mean is NaN or infinity.
    """
    columns = batch.predicting if predicting_only else slice(0, batch.ids_BT.shape[1])
    roles = len(Role)

    def sums_of(part: slice) -> tuple[Tensor, list[Tensor]]:
        rows = batch.rows(part)
        with read_components(lm, mlps=mlps, columns=columns) as reading:
            lm.logits(rows)
        role_BT = rows.role_BT[:, columns]
        real_BT = role_BT >= 0
        index_S = role_BT[real_BT]
        both = (*reading.z, *reading.m)
        sums = [_sum_by_role(out_BT, real_BT, index_S, roles) for out_BT in both]
        return torch.bincount(index_S, minlength=roles).cpu(), sums

    found = in_passes(
        lm.passes, "means", len(batch), sums_of, most=ROWS_PER_PASS, progress=progress
    )
    counts_R, totals = found[0][0].double(), found[0][1]
    for counts, sums in found[1:]:
        counts_R += counts
        totals = [a + b for a, b in zip(totals, sums, strict=True)]
    divisor_R = counts_R.clamp(min=1)
    means = tuple(
        (total / divisor_R.to(total.device).view(-1, *[1] * (total.ndim - 1))).to(torch.float32)
        for total in totals
    )
    check_means(means, lm, len(batch))
    layers = len(lm.layout.layers)
    return RoleMeans(means[:layers], counts_R, means[layers:])


def _answer_like_last(mean_R: Tensor) -> Tensor:
    filled_R = mean_R.clone()
    filled_R[int(Role.ANSWER)] = mean_R[int(Role.LAST)]
    return filled_R


def _sum_by_role(out_BT: Tensor, real_BT: Tensor, index_S: Tensor, roles: int) -> Tensor:
    """Return the sums by role of the outputs [B, T, H, d] or [B, T, D] of real tokens."""
    # The layers of a model may lie on several devices.
    out_S, index_S = out_BT[real_BT.to(out_BT.device)], index_S.to(out_BT.device)
    total_R = torch.zeros(roles, *out_S.shape[1:], dtype=torch.float64, device=out_S.device)
    # Not index_add_: on a GPU it adds in another order every time.
    for role in index_S.unique().tolist():
        total_R[role] = out_S[index_S == role].sum(0, dtype=torch.float64)
    return total_R
