"""Task means of a circuit's heads, in blocks of prompts: memory is that of the means alone.

    zbar_k[h] = mean over few-shot prompts of task k of the head's output at the last prompt token

Blocks of a few prompts stand in for the prompts where a spread is needed: halves of the data, and
bootstrap resamples of the means.

Shapes: K tasks, G blocks, B prompts of a task, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.heads import HeadId
from headloc.lm.taps import read_heads
from headloc.objectives.prompts import encode_examples
from headloc.randomness import stream

from .reading import by_layer, prompt_only

if TYPE_CHECKING:
    from .base import Subject

MOST_BLOCKS = 20
ROWS_PER_PASS = 128


@dataclass(frozen=True, slots=True)
class MeanBlocks:
    """Mean outputs by task and block of prompts.

    Attributes:
        tasks: names of the K tasks, those for training first.
        heads: the heads.
        z: per head z_KGd, before W_O, float64 on the CPU.
    """

    tasks: tuple[str, ...]
    heads: tuple[HeadId, ...]
    z: tuple[Tensor, ...]


def estimate_blocks(subject: Subject) -> MeanBlocks:
    """Estimate the means of every task on `subject.mean_prompts` prompts of its own stream."""
    per_task = [_of_task(subject, task) for task in subject.tasks]
    return MeanBlocks(
        subject.tasks, subject.heads, tuple(torch.stack(z) for z in zip(*per_task, strict=True))
    )


def block_count(prompts: int) -> int:
    """Return an even number of blocks with two prompts each at least, where there are enough."""
    return min(MOST_BLOCKS, max(2, prompts // 4 * 2))


@torch.no_grad()
def _of_task(subject: Subject, task: str) -> list[Tensor]:
    rng = stream(subject.seed, "analysis", "means", task)
    lm, n, count = subject.lm, subject.mean_prompts, block_count(subject.mean_prompts)
    sums: list[Tensor] = []
    sizes_G = torch.zeros(count, dtype=torch.float64)
    for start in range(0, n, ROWS_PER_PASS):
        rows = min(ROWS_PER_PASS, n - start)
        examples = [subject.task.example(task, rng, items="fit") for _ in range(rows)]
        _, batch = encode_examples(lm, examples, subject.task.template)
        with read_heads(lm, columns=slice(-1, None)) as reading:
            lm.logits(prompt_only(batch))
        chosen = by_layer(lm, subject.heads)
        z = [
            reading.z[p][:, 0, head].double().cpu() for p, heads in chosen.items() for head in heads
        ]
        block_B = torch.arange(start, start + rows) % count
        sizes_G += torch.bincount(block_B, minlength=count)
        added = [torch.zeros(count, x.shape[1], dtype=x.dtype).index_add_(0, block_B, x) for x in z]
        sums = added if not sums else [a + b for a, b in zip(sums, added, strict=True)]
    return [total_Gd / sizes_G[:, None] for total_Gd in sums]
