"""Task means: the mean output of every head at the last prompt token, task by task.

Source: Hu et al. 2025, localization.

    zbar_k[l,h] = mean over n few-shot prompts of task k of the head's output at the last token
    mbar_k[l]   = the same of what the feed-forward block adds to the stream, where asked for

Stored before W_O (d wide), which is D / d times smaller than the contributions.  Every task has its
own random stream, so that a task's mean does not depend on which other tasks are asked for.  Means
are cached on disk by content and task by task, so that an interrupted estimation goes on.

Shapes: K tasks, H heads of a layer, d head width, A heads in flat order, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.lm.batch import Role
from headloc.lm.projection import head_contributions
from headloc.objectives.mean_cache import MeanCache, MeanKind, OneMean, cache_name
from headloc.objectives.off_values import role_means
from headloc.objectives.prompts import Progress, encode_examples
from headloc.objectives.stored_means import stored_means
from headloc.randomness import stream

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Example, TaskFamily


@dataclass(frozen=True, slots=True)
class TaskMeans:
    """Mean head outputs per task.

    Attributes:
        tasks: names of the K tasks.
        z: per layer of the layout, z_KHd in float32.
        mlps: per feed-forward block, m_KD in float32; empty where only heads were read.
    """

    tasks: tuple[str, ...]
    z: tuple[Tensor, ...]
    mlps: tuple[Tensor, ...] = ()

    def index(self, names: Sequence[str]) -> Tensor:
        """Return the row of each named task.

        Raises:
            HeadlocError: when there is no mean for a task.
        """
        rows = {task: row for row, task in enumerate(self.tasks)}
        missing = sorted(set(names) - rows.keys())
        if missing:
            raise HeadlocError(
                f"There are no task means for {', '.join(missing)}. Means were estimated for "
                f"{', '.join(self.tasks)}."
            )
        return torch.tensor([rows[name] for name in names])

    def average(self, names: Sequence[str]) -> tuple[Tensor, ...]:
        """Return, per layer, the mean z_HDd over some tasks (the cross-task mean)."""
        rows = self.index(names)
        return tuple(z_KHd[rows].mean(0) for z_KHd in self.z)

    def minus(self, other: TaskMeans) -> TaskMeans:
        """Return these means relative to other ones of the same tasks."""
        rows = other.index(self.tasks)
        return TaskMeans(
            self.tasks,
            tuple(a - b[rows] for a, b in zip(self.z, other.z, strict=True)),
            tuple(a - b[rows] for a, b in zip(self.mlps, other.mlps, strict=True)),
        )

    def contributions(self, lm: FrozenLM) -> Tensor:
        """Return G_KAD, what each mean adds to the residual stream (Hu et al. 2025, localization).

        The feed-forward blocks, where there are means of them, stand behind the heads.
        """
        parts = [
            head_contributions(lm, position, z_KHd.to(lm.device))
            for position, z_KHd in enumerate(self.z)
        ]
        blocks = [m_KD[:, None].to(parts[0]) for m_KD in self.mlps]
        return torch.cat([*parts, *blocks], dim=1)

    def to_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors to store, one per layer and block."""
        z = {f"{prefix}/{i:03d}": z_KHd.contiguous() for i, z_KHd in enumerate(self.z)}
        blocks = {f"{prefix}_mlp/{i:03d}": m_KD.contiguous() for i, m_KD in enumerate(self.mlps)}
        return {**z, **blocks}

    @classmethod
    def from_tensors(
        cls,
        tasks: Sequence[str],
        tensors: Mapping[str, Tensor],
        prefix: str,
        lm: FrozenLM,
        *,
        mlps: bool = False,
    ) -> TaskMeans:
        """Read `to_tensors` back.

        Args:
            tasks: names of the tasks.
            tensors: the tensors of a circuit.
            prefix: what `to_tensors` was given.
            lm: the model that they are used in.
            mlps: whether means of feed-forward blocks are needed.

        Raises:
            CircuitError: when they are missing, of another number of tasks, or of another model.
        """
        return cls(tuple(tasks), *stored_means(tensors, prefix, len(tasks), lm, mlps=mlps))


def estimate_task_means(
    lm: FrozenLM,
    task: TaskFamily,
    names: Sequence[str],
    *,
    prompts: int,
    seed: int,
    kind: MeanKind = "few_shot",
    cache: MeanCache | Path | None = None,
    mlps: bool = False,
    progress: Progress | None = None,
) -> TaskMeans:
    """Estimate the means of some tasks, those that the cache holds excepted.

    Args:
        lm: the frozen model.
        task: the task family.
        names: tasks of the family.
        prompts: prompts per task (100 in the paper).
        seed: seed of the run; the stream of a task is ("means", kind, task).
        kind: which prompts.
        cache: cached means, or their folder.
        mlps: estimate the means of the feed-forward blocks as well.
        progress: called with (tasks done, tasks in all).
    """
    if isinstance(cache, Path):
        cache = MeanCache(cache)
    per_task = []
    for done, name in enumerate(names, start=1):
        key = cache_name(lm, task, name, prompts, seed, kind, mlps)
        means = None if cache is None else cache.read(key, lm, mlps)
        if means is None:
            means = _estimate(lm, task, name, prompts, seed, kind, mlps)
            if cache is not None:
                cache.keep(key, means)
        per_task.append(means)
        if progress is not None:
            progress(done, len(names))
    z, m = (
        tuple(torch.stack(layer) for layer in zip(*group, strict=True))
        for group in ([one.z for one in per_task], [one.mlps for one in per_task])
    )
    return TaskMeans(tuple(names), z, m)


def _estimate(
    lm: FrozenLM,
    task: TaskFamily,
    name: str,
    prompts: int,
    seed: int,
    kind: MeanKind,
    mlps: bool,
) -> OneMean:
    rng = stream(seed, "means", kind, name)
    examples = [task.example(name, rng, items="fit") for _ in range(prompts)]
    _, batch = encode_examples(lm, [_as(kind, task, item, rng) for item in examples], task.template)
    means = role_means(lm, batch, predicting_only=True, mlps=mlps)
    last = int(Role.LAST)
    return OneMean(
        tuple(mean_RHd[last].cpu() for mean_RHd in means.means),
        tuple(mean_RD[last].cpu() for mean_RD in means.mlps),
    )


def _as(kind: MeanKind, task: TaskFamily, example: Example, rng: Any) -> Example:
    if kind == "shuffled":
        return task.shuffled(example, rng)
    return example.zero_shot() if kind == "zero_shot" else example
