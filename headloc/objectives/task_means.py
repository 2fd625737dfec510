"""Task means: the mean output of every head at the last prompt token, task by task (METHODS 3.1).

    zbar_k[l,h] = mean over n few-shot prompts of task k of the head's output at the last token

Stored before W_O (d wide), which is D / d times smaller than the contributions.  Every task has its
own random stream, so that a task's mean does not depend on which other tasks are asked for.  Means
are cached on disk by content and task by task, so that an interrupted estimation goes on.

Shapes: K tasks, H heads of a layer, d head width, A heads in flat order, D model width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from headloc.errors import CircuitError, HeadlocError
from headloc.files import write_bytes
from headloc.lm.batch import Role
from headloc.lm.projection import head_contributions
from headloc.objectives.off_values import role_means
from headloc.objectives.prompts import Progress, encode_examples
from headloc.randomness import stream

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Example, TaskFamily

MeanKind = Literal["few_shot", "shuffled", "zero_shot"]
"""Prompts a mean is taken over: few-shot, few-shot with shuffled labels, or the query alone."""


@dataclass(frozen=True, slots=True)
class TaskMeans:
    """Mean head outputs per task.

    Attributes:
        tasks: names of the K tasks.
        z: per layer of the layout, z_KHd in float32.
    """

    tasks: tuple[str, ...]
    z: tuple[Tensor, ...]

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
            self.tasks, tuple(a - b[rows] for a, b in zip(self.z, other.z, strict=True))
        )

    def contributions(self, lm: FrozenLM) -> Tensor:
        """Return G_KAD, what each head's mean adds to the residual stream (METHODS 3.1)."""
        parts = [
            head_contributions(lm, position, z_KHd.to(lm.device))
            for position, z_KHd in enumerate(self.z)
        ]
        return torch.cat(parts, dim=1)

    def to_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors to store, one per layer."""
        return {f"{prefix}/{i:03d}": z_KHd.contiguous() for i, z_KHd in enumerate(self.z)}

    @classmethod
    def from_tensors(
        cls, tasks: Sequence[str], tensors: Mapping[str, Tensor], prefix: str
    ) -> TaskMeans:
        """Read `to_tensors` back.

        Raises:
            CircuitError: when they are missing or belong to another number of tasks.
        """
        names = sorted(name for name in tensors if name.startswith(f"{prefix}/"))
        if not names or any(len(tensors[name]) != len(tasks) for name in names):
            raise CircuitError(
                f"The circuit does not hold the means of its {len(tasks)} tasks. Save it again "
                "from the run that made it."
            )
        return cls(tuple(tasks), tuple(tensors[name] for name in names))


def estimate_task_means(
    lm: FrozenLM,
    task: TaskFamily,
    names: Sequence[str],
    *,
    prompts: int,
    seed: int,
    kind: MeanKind = "few_shot",
    cache: Path | None = None,
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
        cache: folder of cached means, or None.
        progress: called with (tasks done, tasks in all).
    """
    per_task = []
    for done, name in enumerate(names, start=1):
        path = None if cache is None else cache / f"{_key(lm, task, name, prompts, seed, kind)}"
        z = _cached(path, lm)
        if z is None:
            z = _estimate(lm, task, name, prompts, seed, kind)
            _keep(path, z)
        per_task.append(z)
        if progress is not None:
            progress(done, len(names))
    stacked = tuple(torch.stack(layer) for layer in zip(*per_task, strict=True))
    return TaskMeans(tuple(names), stacked)


def _estimate(
    lm: FrozenLM, task: TaskFamily, name: str, prompts: int, seed: int, kind: MeanKind
) -> tuple[Tensor, ...]:
    rng = stream(seed, "means", kind, name)
    examples = [task.example(name, rng, items="fit") for _ in range(prompts)]
    _, batch = encode_examples(lm, [_as(kind, task, item, rng) for item in examples], task.template)
    means = role_means(lm, batch, predicting_only=True)
    return tuple(mean_RHd[int(Role.LAST)].cpu() for mean_RHd in means.means)


def _as(kind: MeanKind, task: TaskFamily, example: Example, rng: Any) -> Example:
    if kind == "shuffled":
        return task.shuffled(example, rng)
    return example.zero_shot() if kind == "zero_shot" else example


def _key(lm: FrozenLM, task: TaskFamily, name: str, prompts: int, seed: int, kind: MeanKind) -> str:
    """Return the file name of a mean: a hash over everything that it depends on."""
    content = {
        "model": lm.source.fingerprint,
        "revision": lm.source.revision,
        "dtype": lm.source.dtype,
        "task": {key: value for key, value in task.describe().items() if key != "held_out"},
        "name": name,
        "prompts": prompts,
        "seed": seed,
        "kind": kind,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"means-{digest[:32]}.safetensors"


def _cached(path: Path | None, lm: FrozenLM) -> tuple[Tensor, ...] | None:
    """Return a cached mean; a broken or foreign file counts as none and is estimated again."""
    if path is None or not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError):
        return None
    z = tuple(tensors[name] for name in sorted(tensors))
    shapes = [(layer.heads, layer.width) for layer in lm.layout.layers]
    return z if [tuple(part.shape) for part in z] == shapes else None


def _keep(path: Path | None, z: tuple[Tensor, ...]) -> None:
    if path is not None:
        named = {f"{i:03d}": part.contiguous() for i, part in enumerate(z)}
        write_bytes(path, save(named, metadata={"format": "pt"}))
