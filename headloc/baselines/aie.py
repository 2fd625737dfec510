"""Average indirect effect of every head (Todd et al. 2024, arXiv 2310.15213; METHODS 3.7).

    CIE(h | k) = mean of [ p(y_1 | shuffled prompt, z[h] := zbar_k[h]) - p(y_1 | shuffled prompt) ]
    AIE(h)     = mean of CIE(h | k) over the training tasks

over few-shot prompts whose demonstrations' labels are permuted so that none keeps its own; y_1 is
the first token of the answer and z[h] the head's output at the last prompt token.  Heads are ranked
by the signed value.

The prompts' prefixes are run once; a (head, prompt) pair is a row of one token that starts at the
head's own layer.

Shapes: A heads in flat order, H heads of a layer, K training tasks, N prompts, P prompts of a task,
B rows of a pass, T columns of the current forward, d head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.heads import HeadId, HeadLayout
from headloc.lm.batch import EncodedPrompt, TokenBatch, collate
from headloc.lm.partial import reading_stream, starting_at, supports_partial
from headloc.lm.prefix import PrefixCache
from headloc.lm.taps import tap_heads
from headloc.objectives.prompts import Progress, chunks, encode_examples
from headloc.objectives.task_means import TaskMeans
from headloc.randomness import stream

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Example, TaskFamily

PROMPTS_PER_TASK = 25
ROWS_PER_PASS = 512
"""(head, prompt) pairs of a pass."""


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
        order_A = self.effects_KA.mean(0).argsort(descending=True, stable=True)
        return [self.layout.head(index) for index in order_A.tolist()]

    def top(self, heads: int) -> list[int]:
        """Return the sorted flat indices of the heads with the largest signed AIE.

        Raises:
            HeadlocError: for more heads than the model has.
        """
        if not 0 <= heads <= self.layout.total:
            raise HeadlocError(f"The model has {self.layout.total} heads, not {heads}.")
        return self.layout.indices(self.ranking()[:heads])


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
    rows_per_pass: int = ROWS_PER_PASS,
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
        progress: called with (heads done, heads in all).

    Raises:
        HeadlocError: when a training task has no mean, or there are no prompts.
        TaskError: when an example's labels cannot be shuffled.
    """
    if prompts < 1:
        raise HeadlocError(f"The average indirect effect needs prompts; given prompts={prompts}.")
    shuffled = _Shuffled(lm, task, shuffled_examples(task, seed=seed, prompts=prompts))
    task_N = means.index([example.task for example in shuffled.examples]).to(lm.device)
    before_N = shuffled.probability()
    parts, done = [], 0
    for position, layer in enumerate(lm.layout.layers):
        z_KHd = means.z[position].to(lm.device)
        after_HN = shuffled.patched(position, z_KHd, task_N, rows_per_pass)
        parts.append((after_HN - before_N).unflatten(1, (len(task.train), prompts)).mean(2))
        done += layer.heads
        if progress is not None:
            progress(done, lm.layout.total)
    return IndirectEffects(lm.layout, tuple(task.train), torch.cat(parts).T.cpu())


class _Shuffled:
    """Label-shuffled prompts, their prefixes run, with the first token of the answer as target."""

    def __init__(self, lm: FrozenLM, task: TaskFamily, examples: Sequence[Example]) -> None:
        self.examples = examples
        self._lm = lm
        encoded, _ = encode_examples(lm, examples, task.template)
        first = [
            EncodedPrompt(p.prompt_ids, p.answer_ids[:1], p.roles)
            for p in (item.prompt for item in encoded)
        ]
        self._batch = collate(first, lm.pad_id).to(lm.device)
        cached = lm.supports_prefix_cache and self._batch.prompt_columns > 1
        self._prefix: PrefixCache | None = lm.prefix(self._batch) if cached else None
        self._streams = self._read_streams() if cached else {}

    def probability(self) -> Tensor:
        """Return p(first answer token)_N of the untouched prompts, float64."""
        return torch.cat([self._run(part) for part in chunks(len(self._batch))])

    def patched(self, position: int, z_KHd: Tensor, task_N: Tensor, rows_per_pass: int) -> Tensor:
        """Return p(first answer token)_HN with one head of a layer at a time at its task mean.

        Args:
            position: position of the layer in `lm.layout.layers`.
            z_KHd: task means of the layer.
            task_N: row of each prompt's task in them.
            rows_per_pass: rows of a pass.
        """
        n, heads = len(self._batch), z_KHd.shape[1]
        layer = self._lm.layout.layers[position].layer
        found = []
        for part in chunks(heads * n, rows_per_pass):
            flat_B = torch.arange(part.start, part.stop, device=self._lm.device)
            row_B, head_B = flat_B % n, torch.div(flat_B, n, rounding_mode="floor")
            edit = _replacing(head_B, z_KHd[task_N[row_B], head_B])
            with tap_heads(self._lm, edit, layers=[layer]), self._from(layer, row_B):
                found.append(self._run(row_B))
        return torch.cat(found).view(heads, n)

    def _from(self, layer: int, row_B: Tensor) -> AbstractContextManager[None]:
        if layer not in self._streams:
            return nullcontext()
        return starting_at(self._lm, layer, self._streams[layer][row_B])

    def _run(self, rows: Tensor | slice) -> Tensor:
        batch: TokenBatch = self._batch.rows(rows)
        prefix = None if self._prefix is None else self._prefix.rows(rows)
        p_BV = self._lm.logits(batch, prefix)[:, 0].float().softmax(-1)
        return p_BV.gather(1, batch.target_BJ)[:, 0].double()

    def _read_streams(self) -> dict[int, Tensor]:
        """Return what enters each layer at the last token, where a pass can start there."""
        layers = [heads.layer for heads in self._lm.layout.layers if heads.layer > 0]
        layers = [layer for layer in layers if supports_partial(self._lm, layer)]
        with ExitStack() as stack:
            seen = {layer: stack.enter_context(reading_stream(self._lm, layer)) for layer in layers}
            for part in chunks(len(self._batch)):
                self._run(part)
        return {layer: torch.cat(streams) for layer, streams in seen.items()}


def _replacing(head_B: Tensor, value_Bd: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Return an edit that replaces one head per row at the last column."""

    def edit(position: int, z_BTHd: Tensor) -> Tensor:
        new_BTHd = z_BTHd.clone()
        row_B = torch.arange(len(head_B), device=z_BTHd.device)
        head = head_B.to(z_BTHd.device)
        new_BTHd[row_B, -1, head] = value_Bd.to(z_BTHd)
        return new_BTHd

    return edit
