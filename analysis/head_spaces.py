"""The aggregation subspace of a head: where its mean outputs differ from task to task.

Principal components of the contributions zbar_k W_O of the training tasks (Hu et al. 2025).  Edits
of the contribution become edits of the head's own output z, because W_O maps z one to one:

    h -> mu + (h - mu) B B^T      is      z -> m + (z - m) M,    M = W_O B B^T W_O^+

Shapes: K tasks, G blocks of prompts, d head width, D model width, R components, r dimensions of a
subspace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.lm.projection import output_weights

from .base import NotApplicable, Subject, require_heads
from .linear import Components, orthonormal, principal_components

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

FEWEST_TASKS = 3
RELIABLE = 0.5
"""Reliability from which a head is said to tell tasks apart."""


@dataclass(frozen=True, slots=True)
class HeadSpace:
    """One head with its task means and the subspace that they span, in float64 on the CPU.

    Attributes:
        head: the head.
        position: position of its layer in `lm.layout.layers`.
        tasks: names of the K tasks.
        blocks_KGd: mean output per task and block of prompts, before W_O.
        z_Kd: mean output per task.
        weight_dD: W_O of the head.
        inverse_Dd: its pseudo-inverse.
        center_d: mean output over the training tasks.
        components: principal components of the training tasks' contributions.
    """

    head: HeadId
    position: int
    tasks: tuple[str, ...]
    blocks_KGd: Tensor
    z_Kd: Tensor
    weight_dD: Tensor
    inverse_Dd: Tensor
    center_d: Tensor
    components: Components

    @property
    def points_KD(self) -> Tensor:
        """Contributions zbar_k W_O."""
        return self.z_Kd @ self.weight_dD

    @property
    def centred_KD(self) -> Tensor:
        """Contributions relative to their mean over the training tasks: the task directions."""
        return (self.z_Kd - self.center_d) @ self.weight_dD

    @property
    def reach_DR(self) -> Tensor:
        """Basis of everything that the head can write."""
        return orthonormal(self.weight_dD.T)

    def basis(self, size: int) -> Tensor:
        """Return the aggregation subspace of the first components, Q_Dr."""
        return self.components.basis_DR[:, :size]

    def readout(self, basis_Dr: Tensor) -> Tensor:
        """Return what turns an output z into coordinates in a subspace, W_O B as [d, r]."""
        return self.weight_dD @ basis_Dr

    def projection(self, basis_Dr: Tensor) -> Tensor:
        """Return M_dd, which projects z so that z W_O is projected onto a subspace."""
        return self.readout(basis_Dr) @ (basis_Dr.T @ self.inverse_Dd)


def coordinates_of(space: HeadSpace, size: int) -> Tensor:
    """Return the coordinates of every task mean in the aggregation subspace, centred, [K, r]."""
    return (space.z_Kd - space.center_d) @ space.readout(space.basis(size))


def resampled_means(space: HeadSpace, resamples: int, generator: torch.Generator) -> Tensor:
    """Return task means over bootstrap resamples of the blocks of each task, z_RKd."""
    K, G, _ = space.blocks_KGd.shape
    drawn_RKG = torch.randint(G, (resamples, K, G), generator=generator)
    weight_RKG = torch.zeros(resamples, K, G, dtype=torch.float64)
    weight_RKG.scatter_add_(2, drawn_RKG, torch.full_like(drawn_RKG, 1, dtype=torch.float64) / G)
    return torch.einsum("rkg,kgd->rkd", weight_RKG, space.blocks_KGd)


def head_spaces(subject: Subject, half: int | None = None) -> list[HeadSpace]:
    """Return the aggregation subspaces of a circuit's heads, fitted on the training tasks.

    Args:
        subject: the circuit with its model and task.
        half: 0 or 1 for one half of the prompts that the means are taken over, None for all.

    Raises:
        NotApplicable: when there are no heads or too few training tasks.
    """
    require_heads(subject)
    if len(subject.task.train) < FEWEST_TASKS:
        raise NotApplicable(
            f"A subspace of task means needs {FEWEST_TASKS} training tasks or more; the family "
            f"{subject.task.name} has {len(subject.task.train)}."
        )
    blocks = subject.blocks
    return [
        _space(subject.lm, head, z_KGd if half is None else z_KGd[:, half::2], subject)
        for head, z_KGd in zip(blocks.heads, blocks.z, strict=True)
    ]


def reliability(first: HeadSpace, second: HeadSpace) -> float:
    """Return how well the differences between task means repeat in other prompts.

    The correlation of the centred task means of two halves of the data: 1 for a head that tells
    tasks apart, 0 for one whose means differ by chance alone.
    """
    a_KD, b_KD = first.points_KD, second.points_KD
    a_KD, b_KD = a_KD - a_KD.mean(0), b_KD - b_KD.mean(0)
    size = (a_KD.square().sum() * b_KD.square().sum()).sqrt().clamp(min=1e-300)
    return float((a_KD * b_KD).sum() / size)


def telling_heads(subject: Subject) -> tuple[HeadId, ...]:
    """Return the heads that tell tasks apart: those with a reliability of `RELIABLE` or more.

    The others of a circuit do something else, such as carrying the query, and the differences
    between their task means are those between the prompts at hand.
    """
    halves = zip(head_spaces(subject, 0), head_spaces(subject, 1), strict=True)
    return tuple(a.head for a, b in halves if reliability(a, b) >= RELIABLE)


def chosen_heads(subject: Subject, choice: str | Sequence[str]) -> tuple[HeadId, ...]:
    """Return the heads of a circuit that an analysis edits.

    Args:
        subject: the circuit with its model and task.
        choice: "telling" for those that tell tasks apart (all, when none does), "all", or a list
            of heads as L15H2.

    Raises:
        HeadlocError: for another word, or a head that is not of the circuit.
    """
    if choice == "all":
        return subject.heads
    if choice == "telling":
        return telling_heads(subject) or subject.heads
    if isinstance(choice, str):
        raise HeadlocError(
            f"analysis.heads={choice!r} must be telling, all, or a list such as [L2H0,L2H3]."
        )
    wanted = tuple(sorted({HeadId.parse(name) for name in choice}))
    strange = [str(head) for head in wanted if head not in subject.heads]
    if strange or not wanted:
        raise HeadlocError(
            f"analysis.heads names {', '.join(strange) or 'no head'}; the circuit holds "
            f"{', '.join(map(str, subject.heads))}."
        )
    return wanted


def _space(lm: FrozenLM, head: HeadId, z_KGd: Tensor, subject: Subject) -> HeadSpace:
    position = [layer.layer for layer in lm.layout.layers].index(head.layer)
    weight_dD = output_weights(lm, position)[head.head].detach().double().cpu()
    z_Kd = z_KGd.mean(1)
    # The training tasks stand first.
    fitted_Kd = z_Kd[: len(subject.task.train)]
    return HeadSpace(
        head=head,
        position=position,
        tasks=subject.tasks,
        blocks_KGd=z_KGd,
        z_Kd=z_Kd,
        weight_dD=weight_dD,
        inverse_Dd=torch.linalg.pinv(weight_dD),
        center_d=fitted_Kd.mean(0),
        components=principal_components(fitted_Kd @ weight_dD),
    )
