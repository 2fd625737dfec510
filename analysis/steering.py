"""Do the feature subspaces cause the answer, and can they be steered? (Hu et al. 2025)

Arms (`arms.py`): heads are projected onto the subspace of a feature group (parity, unit digit,
magnitude), or onto what their r dimensions hold beside it, with random subspaces of the same size
as controls.  Steering: in few-shot prompts of task k the coordinates of the heads are rewritten to
those of k',

    h -> h + (zbar_k' W_O - h) Q Q^T

and the answer should become that of k'.  Controls: as many random dimensions, everything but the
subspace, and the whole output.  Heads outside the circuit go on saying k; in "circuit alone" they
stand at their mean over the training tasks.

Shapes: B rows, K tasks, d head width, r dimensions, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.randomness import stream, torch_generator
from headloc.tasks import Arithmetic, Example

from . import steering_shown as shown
from .arms import CONTEXTS, ArmRunner, as_floats, group_bases, task_rows
from .base import Analysis, Findings, Progress, Subject
from .head_spaces import HeadSpace, chosen_heads, head_spaces
from .linear import random_basis
from .periodic import numbers_of
from .prompting import Chunk, Edit, answers, numbers, prompt_chunks

ROWS_PER_PASS = 512
"""(prompt, new task) pairs of a pass."""

ALONE = "subspace, circuit alone"


@dataclass(frozen=True)
class Steering(Analysis):
    """Options.

    Attributes:
        dimensions: dimensions r of the aggregation subspace.
        heads: heads that are edited: telling (those that tell tasks apart), all, or a list.
        prompts: fresh prompts per arm, over all tasks.
        random_sets: random subspaces per size.
        steered_prompts: prompts per task that are steered to every other task.
        layer: layer of the vector context; None for a third of the depth.
        dose: factor on the vector.
    """

    dimensions: int = 6
    heads: str | tuple[str, ...] | list[str] = "telling"
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
        layer, chosen = self._layer(subject), chosen_heads(subject, self.heads)
        edited = [space for space in spaces if space.head in chosen]
        examples = self._examples(subject, self.prompts, "steering arms")
        steered = self._examples(subject, self.steered_prompts * len(subject.tasks), "steering")
        done = [0]

        def advance(rows: int) -> None:
            done[0] += rows
            progress(done[0], len(examples) * len(CONTEXTS) + len(steered))

        runner = ArmRunner(
            subject,
            edited,
            [space for space in spaces if space.head not in chosen],
            group_bases(
                edited, k_K, self.dimensions, random_sets=self.random_sets, seed=subject.seed
            ),
            layer,
            self.dose,
        )
        return shown.findings(
            [arm for context in CONTEXTS for arm in runner.run(examples, context, advance)],
            self._steer(subject, edited, steered, advance),
            self._single_heads(subject, edited, examples),
            k_K.numpy().astype(int),
            size=self.dimensions,
            layer=layer,
            dose=self.dose,
            seed=subject.seed,
        )

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

    def _steer(
        self,
        subject: Subject,
        spaces: Sequence[HeadSpace],
        examples: Sequence[Example],
        advance: Callable[[int], None],
    ) -> list[shown.Steered]:
        """Rewrite every prompt to every task, by kind of rewriting."""
        task = _arithmetic(subject)
        matrices = self._rewritings(subject.seed, spaces)
        silent = mean_edits(subject)
        hits: dict[str, list[NDArray[np.bool_]]] = {kind: [] for kind in matrices}
        from_P: list[int] = []
        offsets = [task.offset(name) for name in subject.tasks]
        for chunk in prompt_chunks(subject.lm, task.template, examples):
            from_P += task_rows(subject, chunk).tolist()
            wanted_BK = np.array(
                [[task.apply(int(e.query), k) for k in offsets] for e in chunk.examples]
            )
            for kind, per_head in matrices.items():
                rest = silent if kind == ALONE else {}
                said = self._rewritten(subject, spaces, chunk, per_head, rest)
                hits[kind].append(as_floats(said).reshape(wanted_BK.shape) == wanted_BK)
            advance(len(chunk.examples))
        return [
            shown.Steered(kind, np.array(from_P), np.concatenate(found))
            for kind, found in hits.items()
        ]

    def _rewritings(self, seed: int, spaces: Sequence[HeadSpace]) -> dict[str, list[Tensor]]:
        """Return M_dd per head and kind: the part of the output that is rewritten."""
        generator = torch_generator(seed, "steering", "rewriting")
        own = [space.projection(space.basis(self.dimensions)) for space in spaces]
        eyes = [torch.eye(len(matrix_dd), dtype=matrix_dd.dtype) for matrix_dd in own]
        return {
            "subspace": own,
            ALONE: own,
            "random subspace": [
                space.projection(random_basis(space.reach_DR, self.dimensions, generator))
                for space in spaces
            ],
            "complement": [eye - matrix_dd for eye, matrix_dd in zip(eyes, own, strict=True)],
            "whole output": eyes,
        }

    def _rewritten(
        self,
        subject: Subject,
        spaces: Sequence[HeadSpace],
        chunk: Chunk,
        matrices: Sequence[Tensor],
        rest: Mapping[HeadId, Edit],
    ) -> list[int | None]:
        """Return the answers of all (prompt, new task) pairs, prompt by prompt."""
        B, K = len(chunk.examples), len(subject.tasks)
        said: list[int | None] = []
        for start in range(0, B * K, ROWS_PER_PASS):
            pair_R = torch.arange(start, min(start + ROWS_PER_PASS, B * K))
            edits = {
                space.head: rewriting(space, matrix_dd, pair_R % K)
                for space, matrix_dd in zip(spaces, matrices, strict=True)
            } | dict(rest)
            rows = (pair_R // K).to(subject.lm.device)
            said += numbers(subject.lm, answers(subject.lm, chunk, edits, rows=rows))
        return said

    def _single_heads(
        self, subject: Subject, spaces: Sequence[HeadSpace], examples: Sequence[Example]
    ) -> list[tuple[HeadId, NDArray[np.bool_]]]:
        """Rewrite one head alone, each prompt to one random other task."""
        task, K = _arithmetic(subject), len(subject.tasks)
        rng = stream(subject.seed, "analysis", "steering", "single")
        step_P = rng.integers(1, K, size=len(examples))
        offsets = np.array([task.offset(name) for name in subject.tasks])
        hits: dict[HeadId, list[NDArray[np.bool_]]] = {space.head: [] for space in spaces}
        for chunk in prompt_chunks(subject.lm, task.template, examples):
            to_B = (task_rows(subject, chunk) + torch.from_numpy(step_P[chunk.rows])) % K
            wanted = [
                task.apply(int(e.query), int(offsets[i]))
                for e, i in zip(chunk.examples, to_B, strict=True)
            ]
            for space in spaces:
                matrix_dd = space.projection(space.basis(self.dimensions))
                edit = rewriting(space, matrix_dd, to_B)
                tokens = answers(subject.lm, chunk, {space.head: edit})
                hits[space.head].append(as_floats(numbers(subject.lm, tokens)) == wanted)
        return [(head, np.concatenate(found)) for head, found in hits.items()]


def rewriting(space: HeadSpace, matrix_dd: Tensor, to_B: Tensor) -> Edit:
    """Return the edit that rewrites a part of a head's output to the means of other tasks.

    Args:
        space: the head.
        matrix_dd: projection M of z onto that part.
        to_B: row of the new task, per prompt.
    """
    eye_dd = torch.eye(len(matrix_dd), dtype=matrix_dd.dtype)
    return Edit(eye_dd - matrix_dd, space.z_Kd[to_B] @ matrix_dd)


def mean_edits(subject: Subject) -> dict[HeadId, Edit]:
    """Return the edits that put every head outside the circuit to its cross-task mean."""
    average = subject.means.average(subject.task.train)
    found = {}
    for layer, z_Hd in zip(subject.lm.layout.layers, average, strict=True):
        for head in range(layer.heads):
            z_d = z_Hd[head]
            if HeadId(layer.layer, head) not in subject.heads:
                nothing_dd = torch.zeros(len(z_d), len(z_d), dtype=z_d.dtype)
                found[HeadId(layer.layer, head)] = Edit(nothing_dd, z_d)
    return found


def _arithmetic(subject: Subject) -> Arithmetic:
    if not isinstance(subject.task, Arithmetic):
        raise TypeError("Callers have checked that the task has numbers.")
    return subject.task
