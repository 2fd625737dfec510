"""How many dimensions do the heads use to tell tasks apart, and do these dimensions carry the task?

Per head: principal components of the task means (Hu et al. 2025), their spectrum and the dimensions
to 95 %, principal angles to the other heads and between two halves of the data, how exactly the
extraction identity holds, and the causal check: heads are projected onto their first r components
in fresh few-shot prompts, beside random subspaces of the same size.

Shapes: K tasks, d head width, D model width, r dimensions of a subspace, B rows, S random sets,
N prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.heads import HeadId
from headloc.objectives.prompts import encode_examples
from headloc.randomness import torch_generator
from headloc.tasks.family import Split

from . import subspaces_shown as shown
from .base import Analysis, Findings, Progress, Subject
from .head_spaces import HeadSpace, chosen_heads, head_spaces, reliability
from .identity import both_sides, extraction_map
from .linear import overlap, principal_angles, random_basis
from .prompting import Edit, answers, prompt_chunks, right
from .reading import read_heads_of
from .value_maps import value_maps

_NULL_DRAWS = 200
_IDENTITY_PROMPTS = 32

Edits = Mapping[HeadId, Edit]


def projection(space: HeadSpace, basis_Dr: Tensor) -> Edit:
    """Return the edit that projects a head's contribution onto a subspace around its mean."""
    matrix_dd = space.projection(basis_Dr)
    return Edit(matrix_dd, space.center_d - space.center_d @ matrix_dd)


def removal(space: HeadSpace, basis_Dr: Tensor) -> Edit:
    """Return the edit that puts a head's coordinates in a subspace to their mean."""
    matrix_dd = space.projection(basis_Dr)
    rest_dd = torch.eye(len(matrix_dd), dtype=matrix_dd.dtype) - matrix_dd
    return Edit(rest_dd, space.center_d @ matrix_dd)


@dataclass(frozen=True)
class Subspaces(Analysis):
    """Options.

    Attributes:
        dimensions: dimensions r of the aggregation subspace (6 in the paper).
        heads: heads that the causal check projects: telling (those that tell tasks apart), all,
            or a list.
        sizes: numbers of dimensions that it projects onto.
        prompts: fresh few-shot prompts per split of the causal check.
        random_sets: random subspaces per size.
    """

    dimensions: int = 6
    heads: str | tuple[str, ...] | list[str] = "telling"
    sizes: tuple[int, ...] | list[int] = (0, 1, 2, 3, 4, 6, 8)
    prompts: int = 256
    random_sets: int = 5
    name: ClassVar[str] = "subspaces"
    question: ClassVar[str] = "How many dimensions of the heads' outputs carry the task?"

    def __post_init__(self) -> None:
        counts = (self.dimensions, self.prompts, self.random_sets)
        if min(counts) < 1 or any(not isinstance(s, int) or s < 0 for s in self.sizes):
            raise HeadlocError(
                "analysis.dimensions, analysis.prompts and analysis.random_sets must be 1 or more, "
                "and analysis.sizes a list of whole numbers of 0 or more."
            )

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        spaces, first, second = (head_spaces(subject, half) for half in (None, 0, 1))
        size = self.dimensions
        wanted = chosen_heads(subject, self.heads)
        edited = [space for space in spaces if space.head in wanted]
        heads = [
            head_summary(space, a, b, size)
            for space, a, b in zip(spaces, first, second, strict=True)
        ]
        return shown.findings(
            heads=heads,
            spectra={str(space.head): space.components.share_R.numpy() for space in spaces},
            pairs=pair_summaries(spaces, size, subject.seed),
            edited=[str(space.head) for space in edited],
            arms=self._arms(subject, edited, progress),
            identity=identity_checks(subject, spaces, size),
            size=size,
            seed=subject.seed,
        )

    def _arms(
        self, subject: Subject, spaces: Sequence[HeadSpace], progress: Progress
    ) -> list[shown.Arm]:
        splits: list[Split] = ["train", "held_out"] if subject.task.held_out else ["train"]
        settings = self._settings(subject.seed, spaces)
        found: list[shown.Arm] = []
        for turn, split in enumerate(splits):
            examples = subject.examples(self.prompts, "subspaces", split=split)
            outcomes: dict[tuple[str, int | None], list[NDArray[np.bool_]]] = {}
            for chunk in prompt_chunks(subject.lm, subject.task.template, examples):
                for key, sets in settings.items():
                    hits = [
                        right(answers(subject.lm, chunk, edits), chunk.batch.target_BJ)
                        for edits in sets
                    ]
                    outcomes.setdefault(key, []).append(torch.stack(hits).cpu().numpy())
                progress(turn * len(examples) + chunk.rows.stop, len(splits) * len(examples))
            found += [
                shown.Arm(kind, size, split, np.concatenate(parts, axis=1))
                for (kind, size), parts in outcomes.items()
            ]
        return found

    def _settings(
        self, seed: int, spaces: Sequence[HeadSpace]
    ) -> dict[tuple[str, int | None], list[Edits]]:
        """Return the edits of every arm: one set, or several random ones."""
        found: dict[tuple[str, int | None], list[Edits]] = {("full", None): [{}]}
        for size in sorted({*self.sizes, self.dimensions}):
            found["components", size] = [{s.head: projection(s, s.basis(size)) for s in spaces}]
            if size:
                found["random", size] = [
                    {s.head: projection(s, basis) for s, basis in zip(spaces, bases, strict=True)}
                    for bases in self._random(seed, spaces, size, "random")
                ]
        size = self.dimensions
        found["without", size] = [{s.head: removal(s, s.basis(size)) for s in spaces}]
        found["without_random", size] = [
            {s.head: removal(s, basis) for s, basis in zip(spaces, bases, strict=True)}
            for bases in self._random(seed, spaces, size, "without")
        ]
        return found

    def _random(
        self, seed: int, spaces: Sequence[HeadSpace], size: int, use: str
    ) -> list[list[Tensor]]:
        """Return random subspaces of what each head can write, one list per set."""
        generator = torch_generator(seed, "subspaces", use, str(size))
        reaches = [space.reach_DR for space in spaces]
        return [
            [random_basis(reach_DR, size, generator) for reach_DR in reaches]
            for _ in range(self.random_sets)
        ]


def head_summary(
    space: HeadSpace, first: HeadSpace, second: HeadSpace, size: int
) -> shown.HeadSummary:
    """Return the figures of one head, from all prompts and from two halves of them."""
    parts = space.components
    needed = parts.dimensions()
    angles = principal_angles(first.basis(needed), second.basis(needed))
    return shown.HeadSummary(
        head=str(space.head),
        dimensions=needed,
        by_half=(first.components.dimensions(), second.components.dimensions()),
        share=float(parts.share_R[:size].sum()),
        participation=parts.participation,
        reliability=reliability(first, second),
        angle_mean=float(angles.mean()),
        angle_largest=float(angles.max()),
        overlap_of_halves=overlap(first.basis(size), second.basis(size)),
    )


def pair_summaries(spaces: Sequence[HeadSpace], size: int, seed: int) -> list[shown.PairSummary]:
    """Return angles and overlap of pairs of heads, beside random subspaces of the same heads."""
    generator = torch_generator(seed, "subspaces", "pairs")
    reaches = {space.head: space.reach_DR for space in spaces}
    found = []
    for a, b in combinations(spaces, 2):
        angles = principal_angles(a.basis(size), b.basis(size))
        null = [
            overlap(*(random_basis(reaches[s.head], size, generator) for s in (a, b)))
            for _ in range(_NULL_DRAWS)
        ]
        found.append(
            shown.PairSummary(
                str(a.head), str(b.head), float(angles.min()), float(angles.mean()),
                overlap(a.basis(size), b.basis(size)), float(np.mean(null)),
                float(np.percentile(null, 95)),
            )
        )  # fmt: skip
    return found


@torch.no_grad()
def identity_checks(
    subject: Subject, spaces: Sequence[HeadSpace], size: int
) -> list[shown.IdentityCheck]:
    """Return how exactly the identity holds on fresh prompts, head by head.

    Empty for a model whose values cannot be read token by token.
    """
    lm = subject.lm
    examples = subject.examples(_IDENTITY_PROMPTS, "identity")
    _, batch = encode_examples(lm, examples, subject.task.template)
    try:
        maps = value_maps(lm, sorted({space.position for space in spaces}))
        readings = read_heads_of(lm, batch, [space.head for space in spaces], inputs=True)
    except UnsupportedModelError:
        return []
    found = []
    for space in spaces:
        reading, values = readings[space.position], maps[space.position]
        if reading.inputs_BTD is None:
            continue
        basis_Dr, weight_dD = space.basis(size).to(lm.device), space.weight_dD.to(lm.device)
        heads = lm.layout.layers[space.position].heads
        extraction = extraction_map(values, space.head.head, heads, weight_dD, basis_Dr)
        n_BTD, scale_BT = reading.inputs_BTD.double(), values.scale(reading.inputs_BTD).double()
        row = reading.heads.index(space.head.head)
        attention_BT = reading.attention_BHT[:, row].double()
        left_Br, right_Br = both_sides(reading, row, extraction, scale_BT, weight_dD @ basis_Dr)
        inside_Dr = extraction.basis_Dr
        only_BTD = n_BTD @ inside_Dr @ inside_Dr.T
        kept_Br = extraction.aggregated(only_BTD, scale_BT, attention_BT)
        lost_Br = extraction.aggregated(n_BTD - only_BTD, scale_BT, attention_BT)
        bias_Br = (attention_BT * scale_BT).sum(1, keepdim=True) * extraction.constant_r
        unit = left_Br.abs().max().clamp(min=1e-300)
        gaps = (left_Br - right_Br, kept_Br - right_Br, lost_Br - bias_Br)
        found.append(
            shown.IdentityCheck(
                str(space.head), inside_Dr.shape[1], *(float(g.abs().max() / unit) for g in gaps)
            )
        )
    return found
