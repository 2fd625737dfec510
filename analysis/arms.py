"""Arms: heads projected onto feature subspaces, in three contexts (Hu et al. 2025).

    h -> mu + (h - mu) B B^T

few_shot: at the last token of few-shot prompts, in place.  patch: zero-shot prompts with the heads'
outputs replaced by their projected task means.  vector: zero-shot prompts with the sum of the
heads' projected task means added to the stream of one layer, times a dose; heads of the circuit
that are not edited are in the sum with their mean over tasks.

Shapes: B rows, K tasks, d head width, D model width, S random sets, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.lm.stream import add_to_stream
from headloc.randomness import torch_generator
from headloc.tasks import Example

from .base import Subject
from .features import GROUPS, feature_basis
from .head_spaces import HeadSpace
from .linear import complement, random_basis
from .prompting import Chunk, Edit, answers, numbers, prompt_chunks
from .subspaces import projection

CONTEXTS = ("few_shot", "patch", "vector")

Bases = Sequence[Tensor]
"""A basis_Dr per edited head."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Answers of one arm: said_SP numbers of S sets (NaN for no number), right_P the answers."""

    context: str
    mode: str
    group: str
    said_SP: NDArray[np.float64]
    right_P: NDArray[np.int64]

    def hits(self, measure: str) -> NDArray[np.bool_]:
        """Return hit_SP: the answer agrees in the whole, its last digit, parity, or the tens."""
        said, right = self.said_SP, self.right_P.astype(float)
        if measure == "exact":
            return said == right
        if measure == "unit digit":
            return said % 10 == right % 10
        if measure == "parity":
            return said % 2 == right % 2
        return said // 10 == right // 10

    @property
    def errors(self) -> NDArray[np.float64]:
        """All errors that are numbers, said minus right."""
        errors = (self.said_SP - self.right_P).ravel()
        return errors[np.isfinite(errors)]

    @property
    def label(self) -> str:
        """What the pictures call it."""
        return f"{self.mode} {self.group}".strip()


def group_bases(
    spaces: Sequence[HeadSpace], k_K: Tensor, size: int, *, random_sets: int, seed: int
) -> dict[tuple[str, str], list[Bases]]:
    """Return the bases of every arm by (mode, group), several for random ones.

    Modes: onto a group, out of it (onto what the r dimensions hold beside it), all but it (its
    full complement in everything that the head writes), and all three with random subspaces of the
    same size within the r dimensions.
    """
    whole = [space.basis(size) for space in spaces]
    reach = [space.reach_DR for space in spaces]
    found: dict[tuple[str, str], list[Bases]] = {("onto", "all r"): [whole]}
    for group in GROUPS:
        own = [feature_basis(space, k_K, size, group) for space in spaces]
        generator = torch_generator(seed, "steering", group)
        drawn: list[Bases] = [
            [random_basis(w, b.shape[1], generator) for b, w in zip(own, whole, strict=True)]
            for _ in range(random_sets)
        ]
        found["onto", group] = [own]
        found["out of", group] = [_rest(own, whole)]
        found["all but", group] = [_rest(own, reach)]
        found["onto random", group] = drawn
        found["out of random", group] = [_rest(bases, whole) for bases in drawn]
        found["all but random", group] = [_rest(bases, reach) for bases in drawn]
    found["onto", "nothing"] = [[basis[:, :0] for basis in whole]]
    return found


def _rest(bases: Bases, whole: Bases) -> Bases:
    return [complement(b, w) for b, w in zip(bases, whole, strict=True)]


@dataclass(frozen=True)
class ArmRunner:
    """Runs arms on prompts.

    Attributes:
        subject: the circuit with its model and task.
        edited: the heads that are projected.
        others: the circuit's other heads.
        settings: bases of every arm (`group_bases`).
        layer: layer of the vector context.
        dose: factor on the vector.
    """

    subject: Subject
    edited: Sequence[HeadSpace]
    others: Sequence[HeadSpace]
    settings: dict[tuple[str, str], list[Bases]] = field(repr=False)
    layer: int
    dose: float

    def run(
        self, examples: Sequence[Example], context: str, advance: Callable[[int], None]
    ) -> list[Arm]:
        """Return all arms of a context; `advance` is called with the prompts of every chunk."""
        subject = self.subject
        asked = examples if context == "few_shot" else [e.zero_shot() for e in examples]
        said: dict[tuple[str, str], list[list[int | None]]] = {("untouched", ""): [[]]}
        if context != "few_shot":
            said["task means", "whole"] = [[]]
        for key, sets in self.settings.items():
            said[key] = [[] for _ in sets]
        for chunk in prompt_chunks(subject.lm, subject.task.template, asked):
            for key, lists in said.items():
                for index, told in enumerate(lists):
                    if key[0] == "untouched":
                        tokens = answers(subject.lm, chunk)
                    else:
                        whole = key[0] == "task means"
                        bases = None if whole else self.settings[key][index]
                        tokens = self._answer(chunk, bases, context)
                    told += numbers(subject.lm, tokens)
            advance(len(chunk.examples))
        right_P = np.array([int(example.answer) for example in examples])
        return [
            Arm(context, *key, np.stack([as_floats(told) for told in lists]), right_P)
            for key, lists in said.items()
        ]

    def _answer(self, chunk: Chunk, bases: Bases | None, context: str) -> Tensor:
        """Return the answers of one arm; without bases the task means are carried whole."""
        lm, edited = self.subject.lm, self.edited
        if context == "few_shot":
            if bases is None:
                raise ValueError("The few-shot context projects outputs and carries no means.")
            return answers(
                lm,
                chunk,
                {s.head: projection(s, b) for s, b in zip(edited, bases, strict=True)},
            )
        rows_B = task_rows(self.subject, chunk)
        means = [space.z_Kd[rows_B] for space in edited]
        if bases is not None:
            made = [projection(s, b) for s, b in zip(edited, bases, strict=True)]
            means = [z @ _matrix(e) + e.shift for z, e in zip(means, made, strict=True)]
        if context == "patch":
            return answers(
                lm,
                chunk,
                {
                    s.head: Edit(torch.zeros(z.shape[1], z.shape[1], dtype=z.dtype), z)
                    for s, z in zip(edited, means, strict=True)
                },
            )
        vector_BD = sum(
            (z @ s.weight_dD for s, z in zip(edited, means, strict=True)),
            start=torch.zeros(len(rows_B), lm.width, dtype=torch.float64),
        )
        for space in self.others:
            vector_BD = vector_BD + space.center_d @ space.weight_dD
        insert = partial(
            add_to_stream,
            lm,
            self.layer,
            (self.dose * vector_BD).to(lm.device),
            site="attention",
            columns=chunk.last,
        )
        return answers(lm, chunk, context=insert)


def _matrix(edit: Edit) -> Tensor:
    if edit.matrix_dd is None:
        raise ValueError("A projection has a matrix.")
    return edit.matrix_dd


def task_rows(subject: Subject, chunk: Chunk) -> Tensor:
    """Return the row of each prompt's task among the subject's tasks, [B]."""
    row_of = {task: row for row, task in enumerate(subject.tasks)}
    return torch.tensor([row_of[example.task] for example in chunk.examples])


def as_floats(said: Sequence[Any]) -> NDArray[np.float64]:
    """Return numbers, NaN where an answer is none."""
    return np.array([np.nan if number is None else float(number) for number in said])
