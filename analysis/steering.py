"""Do the feature subspaces cause the answer, and can they be steered? (Hu et al. 2025)

Arms: every head of the circuit is projected onto the subspace of a feature group (parity, unit
digit, magnitude), or onto what its r-dimensional subspace holds beside it,

    h -> mu + (h - mu) B B^T

in three contexts: few-shot prompts in place, zero-shot prompts with the heads' outputs replaced by
task means (patch), and zero-shot prompts with the sum of the heads' contributions added to the
stream of one layer (vector).  Steering: the coordinates of the heads are rewritten from k to k' in
few-shot prompts.  Controls: random subspaces of the same size, and the full complement.

Shapes: B rows, K tasks, d head width, D model width, r dimensions, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.lm.stream import add_to_stream
from headloc.randomness import stream, torch_generator
from headloc.tasks import Arithmetic, Example

from . import steering_shown as shown
from .base import Analysis, Findings, Progress, Subject
from .head_spaces import HeadSpace, head_spaces
from .linear import complement, orthonormal, random_basis
from .periodic import numbers_of
from .prompting import Chunk, Edit, answers, numbers, prompt_chunks
from .regression import decoding_directions, fit_period
from .subspaces import projection

QUARTER = torch.pi / 2
GROUPS: Mapping[str, tuple[tuple[float, bool], ...]] = {
    "parity": ((2, False),),
    "unit digit": ((2, False), (5, False), (10, True)),
    "magnitude": ((25, False), (50, False)),
}
"""Periods of each feature group; True for both quadratures, False for the best phase alone."""

CONTEXTS = ("few_shot", "patch", "vector")

Bases = Sequence[Tensor]
"""A basis_Dr per head of the circuit."""


def feature_basis(space: HeadSpace, k_K: Tensor, size: int, group: str) -> Tensor:
    """Return the subspace of a feature group within a head's r dimensions, basis_Dm."""
    basis_Dr = space.basis(size)
    coordinates_Kr = (space.z_Kd - space.center_d) @ space.readout(basis_Dr)
    features: list[tuple[float, float]] = []
    for period, both in GROUPS[group]:
        phase = fit_period(coordinates_Kr, k_K, period).phase
        features += [(period, 0.0), (period, -QUARTER)] if both else [(period, phase)]
    return basis_Dr @ orthonormal(decoding_directions(coordinates_Kr, k_K, features))


@dataclass(frozen=True)
class Steering(Analysis):
    """Options.

    Attributes:
        dimensions: dimensions r of the aggregation subspace.
        prompts: fresh prompts per arm, over all tasks.
        random_sets: random subspaces per size.
        steered_prompts: prompts per task that are steered to every other task.
        layer: layer of the vector context; None for a third of the depth.
        dose: factor on the vector.
    """

    dimensions: int = 6
    prompts: int = 256
    random_sets: int = 3
    steered_prompts: int = 4
    layer: int | None = None
    dose: float = 1.0
    name: ClassVar[str] = "steering"
    question: ClassVar[str] = "Do the feature subspaces cause the answer, and can they be steered?"

    def __post_init__(self) -> None:
        counts = (self.dimensions, self.prompts, self.random_sets, self.steered_prompts)
        if min(counts) < 1:
            raise HeadlocError("The counts of analysis=steering must be 1 or more.")

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        k_K = numbers_of(subject)
        spaces = head_spaces(subject)
        layer = self._layer(subject)
        examples = self._examples(subject, self.prompts, "steering arms")
        steered = self._examples(subject, self.steered_prompts * len(subject.tasks), "steering")
        done = [0]

        def advance(rows: int) -> None:
            done[0] += rows
            progress(done[0], len(examples) * len(CONTEXTS) + len(steered))

        arms = [
            arm
            for context in CONTEXTS
            for arm in self._arms(subject, spaces, k_K, examples, context, layer, advance)
        ]
        moves = self._steer(subject, spaces, steered, advance)
        singles = self._single_heads(subject, spaces, examples)
        return shown.findings(
            arms, moves, singles, k_K.numpy().astype(int), size=self.dimensions, layer=layer,
            dose=self.dose, seed=subject.seed,
        )  # fmt: skip

    def _layer(self, subject: Subject) -> int:
        depth = subject.lm.layout.layers[-1].layer + 1
        layer = depth // 3 if self.layer is None else self.layer
        if not 0 <= layer < depth:
            raise HeadlocError(
                f"analysis.layer={layer} is out of range: the model has layers 0..{depth - 1}."
            )
        return layer

    def _examples(self, subject: Subject, n: int, use: str) -> list[Example]:
        """Draw examples of all tasks in turn."""
        names, rng = subject.tasks, stream(subject.seed, "analysis", use)
        return [subject.task.example(names[i % len(names)], rng, items="score") for i in range(n)]

    def _bases(
        self, seed: int, spaces: Sequence[HeadSpace], k_K: Tensor
    ) -> dict[tuple[str, str], list[Bases]]:
        """Return the bases of every arm by (mode, group), several for random ones."""
        size = self.dimensions
        whole = [space.basis(size) for space in spaces]
        found: dict[tuple[str, str], list[Bases]] = {("onto", "all r"): [whole]}
        for group in GROUPS:
            own = [feature_basis(space, k_K, size, group) for space in spaces]
            rest = [complement(b, w) for b, w in zip(own, whole, strict=True)]
            generator = torch_generator(seed, "steering", group)
            drawn = [
                [random_basis(w, b.shape[1], generator) for b, w in zip(own, whole, strict=True)]
                for _ in range(self.random_sets)
            ]
            found["onto", group] = [own]
            found["out of", group] = [rest]
            found["onto random", group] = drawn  # type: ignore[assignment]
            found["out of random", group] = [
                [complement(b, w) for b, w in zip(bases, whole, strict=True)] for bases in drawn
            ]
        found["onto", "nothing"] = [[basis[:, :0] for basis in whole]]
        return found

    def _arms(
        self,
        subject: Subject,
        spaces: Sequence[HeadSpace],
        k_K: Tensor,
        examples: Sequence[Example],
        context: str,
        layer: int,
        advance: Callable[[int], None],
    ) -> list[shown.Arm]:
        shown_examples = examples if context == "few_shot" else [e.zero_shot() for e in examples]
        settings = self._bases(subject.seed, spaces, k_K)
        said: dict[tuple[str, str], list[list[int | None]]] = {("untouched", ""): [[]]}
        if context != "few_shot":
            said["task means", "whole"] = [[]]
        for key, sets in settings.items():
            said[key] = [[] for _ in sets]
        for chunk in prompt_chunks(subject.lm, subject.task.template, shown_examples):
            rows_B = _task_rows(subject, chunk)
            for key, lists in said.items():
                for index, numbers_said in enumerate(lists):
                    if key[0] == "untouched":
                        tokens = answers(subject.lm, chunk)
                    else:
                        bases = None if key[0] == "task means" else settings[key][index]
                        tokens = self._answer(subject, spaces, chunk, bases, context, layer, rows_B)
                    numbers_said += numbers(subject.lm, tokens)
            advance(len(chunk.examples))
        right_P = np.array([int(example.answer) for example in examples])
        return [
            shown.Arm(context, *key, np.stack([_as_floats(numbers_said) for numbers_said in lists]),
                      right_P)
            for key, lists in said.items()
        ]  # fmt: skip

    def _answer(
        self,
        subject: Subject,
        spaces: Sequence[HeadSpace],
        chunk: Chunk,
        bases: Bases | None,
        context: str,
        layer: int,
        rows_B: Tensor,
    ) -> Tensor:
        """Return the answers of one arm; without bases the task means are carried whole."""
        lm = subject.lm
        if context == "few_shot":
            if bases is None:
                raise ValueError("The few-shot context projects outputs and carries no means.")
            edits = {s.head: projection(s, b) for s, b in zip(spaces, bases, strict=True)}
            return answers(lm, chunk, edits)
        means = [space.z_Kd[rows_B] for space in spaces]
        if bases is not None:
            made = [projection(s, b) for s, b in zip(spaces, bases, strict=True)]
            means = [z @ e.matrix_dd + e.shift for z, e in zip(means, made, strict=True)]  # type: ignore[operator]
        if context == "patch":
            replaced = {
                space.head: Edit(torch.zeros(z.shape[1], z.shape[1], dtype=z.dtype), z)
                for space, z in zip(spaces, means, strict=True)
            }
            return answers(lm, chunk, replaced)
        vector_BD = sum(z @ s.weight_dD for s, z in zip(spaces, means, strict=True)) * self.dose
        return answers(lm, chunk, context=partial(_inserted, subject, layer, vector_BD, chunk.last))

    def _steer(
        self,
        subject: Subject,
        spaces: Sequence[HeadSpace],
        examples: Sequence[Example],
        advance: Callable[[int], None],
    ) -> list[shown.Steered]:
        """Rewrite every prompt to every task, by kind of rewriting."""
        task = subject.task
        assert isinstance(task, Arithmetic)
        matrices = self._rewritings(subject.seed, spaces)
        K = len(subject.tasks)
        hits: dict[str, list[NDArray[np.bool_]]] = {kind: [] for kind in matrices}
        errors: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in matrices}
        from_P: list[int] = []
        offsets = [task.offset(name) for name in subject.tasks]
        for chunk in prompt_chunks(subject.lm, task.template, examples):
            rows_B = _task_rows(subject, chunk)
            from_P += rows_B.tolist()
            wanted_BK = np.array(
                [[task.apply(int(e.query), k) for k in offsets] for e in chunk.examples]
            )
            for kind, per_head in matrices.items():
                said = self._rewritten(subject, spaces, chunk, rows_B, per_head)
                said_BK = _as_floats(said).reshape(len(rows_B), K)
                hits[kind].append(said_BK == wanted_BK)
                errors[kind].append(said_BK - wanted_BK)
            advance(len(chunk.examples))
        return [
            shown.Steered(kind, np.array(from_P), np.concatenate(hits[kind]),
                          np.concatenate(errors[kind]))
            for kind in matrices
        ]  # fmt: skip

    def _rewritings(self, seed: int, spaces: Sequence[HeadSpace]) -> dict[str, list[Tensor]]:
        """Return M_dd per head and kind: the part of the difference of means that is written."""
        generator = torch_generator(seed, "steering", "rewriting")
        size = self.dimensions
        own = [space.projection(space.basis(size)) for space in spaces]
        eyes = [torch.eye(len(matrix_dd), dtype=matrix_dd.dtype) for matrix_dd in own]
        return {
            "subspace": own,
            "random subspace": [
                space.projection(random_basis(space.reach_DR, size, generator)) for space in spaces
            ],
            "complement": [eye - matrix_dd for eye, matrix_dd in zip(eyes, own, strict=True)],
            "whole output": eyes,
        }

    def _rewritten(
        self,
        subject: Subject,
        spaces: Sequence[HeadSpace],
        chunk: Chunk,
        rows_B: Tensor,
        matrices: Sequence[Tensor],
    ) -> list[int | None]:
        """Return the answers of all (prompt, new task) pairs, prompt by prompt."""
        B, K = len(rows_B), len(subject.tasks)
        said: list[int | None] = []
        for start in range(0, B * K, shown.ROWS_PER_PASS):
            pair_R = torch.arange(start, min(start + shown.ROWS_PER_PASS, B * K))
            row_R, to_R = pair_R // K, pair_R % K
            edits = {
                space.head: Edit(None, (space.z_Kd[to_R] - space.z_Kd[rows_B[row_R]]) @ matrix_dd)
                for space, matrix_dd in zip(spaces, matrices, strict=True)
            }
            rows = row_R.to(subject.lm.device)
            said += numbers(subject.lm, answers(subject.lm, chunk, edits, rows=rows))
        return said

    def _single_heads(
        self, subject: Subject, spaces: Sequence[HeadSpace], examples: Sequence[Example]
    ) -> list[tuple[HeadId, NDArray[np.bool_]]]:
        """Rewrite one head alone, each prompt to one random other task."""
        task, K = subject.task, len(subject.tasks)
        assert isinstance(task, Arithmetic)
        rng = stream(subject.seed, "analysis", "steering", "single")
        step_P = rng.integers(1, K, size=len(examples))
        offsets = np.array([task.offset(name) for name in subject.tasks])
        hits: dict[HeadId, list[NDArray[np.bool_]]] = {space.head: [] for space in spaces}
        for chunk in prompt_chunks(subject.lm, task.template, examples):
            rows_B = _task_rows(subject, chunk)
            to_B = (rows_B + torch.from_numpy(step_P[chunk.rows])) % K
            wanted = [
                task.apply(int(e.query), int(offsets[i]))
                for e, i in zip(chunk.examples, to_B, strict=True)
            ]
            for space in spaces:
                matrix_dd = space.projection(space.basis(self.dimensions))
                shift_Bd = (space.z_Kd[to_B] - space.z_Kd[rows_B]) @ matrix_dd
                tokens = answers(subject.lm, chunk, {space.head: Edit(None, shift_Bd)})
                hits[space.head].append(_as_floats(numbers(subject.lm, tokens)) == wanted)
        return [(head, np.concatenate(found)) for head, found in hits.items()]


def _inserted(
    subject: Subject, layer: int, vector_BD: Any, columns: slice
) -> AbstractContextManager[Any]:
    vector_BD = vector_BD.to(subject.lm.device)
    return add_to_stream(subject.lm, layer, vector_BD, site="attention", columns=columns)


def _task_rows(subject: Subject, chunk: Chunk) -> Tensor:
    row_of = {task: row for row, task in enumerate(subject.tasks)}
    return torch.tensor([row_of[example.task] for example in chunk.examples])


def _as_floats(said: Sequence[int | None]) -> NDArray[np.float64]:
    """Return numbers, NaN where an answer is none."""
    return np.array([np.nan if number is None else float(number) for number in said])
