"""Average indirect effect of every head (Todd et al. 2024, arXiv 2310.15213, section 2.3).

    CIE(h | k) = mean of [ p(y_1 | shuffled prompt, z[h] := zbar_k[h]) - p(y_1 | shuffled prompt) ]
    AIE(h)     = mean of CIE(h | k) over the training tasks

over few-shot prompts whose demonstrations' labels are permuted so that none keeps its own; y_1 is
the first token of the answer and z[h] the head's output at the last prompt token.  Heads are ranked
by the signed value.

All heads of a layer are patched in one pass that starts at their layer (`patched_prompts.py`).

Shapes: A heads in flat order, H heads of a layer, K training tasks, N prompts, P prompts of a task,
d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.baselines.patched_prompts import PAIRS_PER_PASS, PatchedPrompts
from headloc.errors import HeadlocError
from headloc.heads import HeadId, HeadLayout
from headloc.objectives.prompts import Progress
from headloc.objectives.task_means import TaskMeans
from headloc.randomness import stream

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Example, TaskFamily

PROMPTS_PER_TASK = 25


@dataclass(frozen=True, slots=True)
class IndirectEffects:
    """Indirect effects of all heads.

    Attributes:
        layout: the heads, which fixes their flat order.
        tasks: names of the K training tasks.
        effects_KA: CIE of every task, float64.
    """

    layout: HeadLayout
    tasks: tuple[str, ...]
    effects_KA: Tensor

    @property
    def scores(self) -> Tensor:
        """AIE [A] in float32, as a circuit keeps its scores."""
        return self.effects_KA.mean(0).float()

    def ranking(self) -> list[HeadId]:
        """Return all heads, the largest signed AIE first; ties in flat order."""
        return [self.layout.head(index) for index in self.order()]

    def order(self) -> list[int]:
        """Return the flat indices of all heads, the largest signed AIE first."""
        order: list[int] = self.effects_KA.mean(0).argsort(descending=True, stable=True).tolist()
        return order

    def top(self, heads: int) -> list[int]:
        """Return the sorted flat indices of the heads with the largest signed AIE.

        Raises:
            HeadlocError: for more heads than the model has.
        """
        if not 0 <= heads <= self.layout.total:
            raise HeadlocError(f"The model has {self.layout.total} heads, not {heads}.")
        return sorted(self.order()[:heads])


def shuffled_examples(
    task: TaskFamily, *, seed: int, prompts: int = PROMPTS_PER_TASK
) -> list[Example]:
    """Draw label-shuffled examples of the training tasks, task by task, of the stream "aie".

    Raises:
        TaskError: when an example's labels cannot be shuffled.
    """
    found = []
    for name in task.train:
        rng = stream(seed, "aie", name)
        drawn = [task.example(name, rng, items="fit") for _ in range(prompts)]
        found += [task.shuffled(example, rng) for example in drawn]
    return found


@torch.no_grad()
def indirect_effects(
    lm: FrozenLM,
    task: TaskFamily,
    means: TaskMeans,
    *,
    seed: int,
    prompts: int = PROMPTS_PER_TASK,
    rows_per_pass: int = PAIRS_PER_PASS,
    progress: Progress | None = None,
) -> IndirectEffects:
    """Measure the indirect effect of every head.

    Args:
        lm: the frozen model.
        task: the task family.
        means: raw mean head outputs of the training tasks on few-shot prompts.
        seed: seed of the run.
        prompts: label-shuffled prompts per training task.
        rows_per_pass: (head, prompt) pairs that run together; only memory limits it.
        progress: called with ((head, prompt) pairs done, in all).

    Raises:
        HeadlocError: when a training task has no mean, or there are no prompts.
        TaskError: when an example's labels cannot be shuffled.
    """
    if prompts < 1:
        raise HeadlocError(f"The average indirect effect needs prompts; given prompts={prompts}.")
    examples = shuffled_examples(task, seed=seed, prompts=prompts)
    task_N = means.index([example.task for example in examples]).to(lm.device)
    shuffled = PatchedPrompts(lm, examples, task.template)
    before_N = shuffled.probability()
    parts, done = [], 0

    def report(more: int) -> None:
        if progress is not None:
            progress(done + more, lm.layout.total * len(examples))

    for position, layer in enumerate(lm.layout.layers):
        z_KHd = means.z[position].to(lm.device)
        after_HN = shuffled.patched(position, z_KHd, task_N, rows_per_pass, report)
        parts.append((after_HN - before_N).unflatten(1, (len(task.train), prompts)).mean(2))
        done += layer.heads * len(examples)
    return IndirectEffects(lm.layout, tuple(task.train), torch.cat(parts).T.cpu())
