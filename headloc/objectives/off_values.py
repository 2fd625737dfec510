"""What a closed head puts out: zero, its mean over tasks, or its output on a counterfactual prompt.

METHODS 3.2: z' = g z + (1 - g) base with base zero, the cross-task mean, or a resampled output.

The mean is kept per *role* of a token (last prompt token, label, separator, ...), because what a
head writes at the last token has little to do with what it writes elsewhere.  It is estimated on
prompts of its own random stream over the training tasks, never on prompts that are trained on or
scored.

Shapes: B rows, T columns, J predicting columns, R roles, H heads of a layer, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from headloc.errors import CircuitError, HeadlocError, suggest
from headloc.lm.batch import Role, TokenBatch
from headloc.lm.taps import read_heads
from headloc.objectives.prompts import Progress, chunks

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

OffKind = Literal["zero", "mean", "resample"]


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
    """Mean head outputs by token role: per layer a float tensor mean_RHd, and counts_R."""

    means: tuple[Tensor, ...]
    counts_R: Tensor

    def at(self, role_BT: Tensor) -> list[Tensor]:
        """Return, per layer, the means z_BTHd for tokens of these roles; padding gets role 0."""
        role_BT = role_BT.clamp(min=0)
        return [mean_RHd[role_BT] for mean_RHd in self.means]

    def at_last(self) -> list[Tensor]:
        """Return, per layer, the mean z_11Hd at the last prompt token."""
        return [mean_RHd[int(Role.LAST)][None, None] for mean_RHd in self.means]

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what a circuit stores: one tensor per layer, and the counts."""
        tensors = {f"off/{i:03d}": mean.contiguous() for i, mean in enumerate(self.means)}
        return {**tensors, "off/counts": self.counts_R}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> RoleMeans:
        """Read back what `to_tensors` gave.

        Raises:
            CircuitError: when the tensors are missing.
        """
        names = sorted(name for name in tensors if name.startswith("off/") and name[4:].isdigit())
        if not names or "off/counts" not in tensors:
            raise CircuitError(
                "The circuit was found with mean off-values but does not hold them. "
                "Save it again from the run that made it."
            )
        return cls(tuple(tensors[name] for name in names), tensors["off/counts"])


@torch.no_grad()
def role_means(
    lm: FrozenLM, batch: TokenBatch, *, predicting_only: bool, progress: Progress | None = None
) -> RoleMeans:
    """Average the head outputs of a batch by token role, in float32 or better.

    Args:
        lm: the frozen model.
        batch: prompts drawn for this purpose alone.
        predicting_only: read the predicting columns only (enough when only those are gated).
        progress: called with (rows done, rows in all).
    """
    columns = batch.predicting if predicting_only else slice(0, batch.ids_BT.shape[1])
    roles = len(Role)
    sums: list[Tensor] | None = None
    counts_R = torch.zeros(roles, dtype=torch.float64)
    for part in chunks(len(batch)):
        rows = batch.rows(part)
        with read_heads(lm, columns=columns) as reading:
            lm.logits(rows)
        role_BT = rows.role_BT[:, columns]
        real_BT = role_BT >= 0
        index_S = role_BT[real_BT]
        counts_R += torch.bincount(index_S, minlength=roles).cpu()
        added = [_sum_by_role(z_BTHd[real_BT], index_S, roles) for z_BTHd in reading.z]
        sums = added if sums is None else [a + b for a, b in zip(sums, added, strict=True)]
        if progress is not None:
            progress(part.stop, len(batch))
    divisor_R = counts_R.clamp(min=1)
    means = tuple(
        (total / divisor_R.to(total.device)[:, None, None]).to(torch.float32)
        for total in sums or []
    )
    return RoleMeans(means, counts_R)


def _sum_by_role(z_SHd: Tensor, index_S: Tensor, roles: int) -> Tensor:
    total_RHd = torch.zeros(roles, *z_SHd.shape[1:], dtype=torch.float64, device=z_SHd.device)
    return total_RHd.index_add_(0, index_S, z_SHd.to(torch.float64))
