"""Objectives that carry a task by its mean head outputs into a zero-shot prompt.

Source: Hu et al. 2025, localization.

Both hold the task means of every head, and of every feed-forward block where these are gated, and
gate them on zero-shot prompts; they differ in how a mean
enters the model (`function_vector.py`, `patch.py`).  The reference of their accuracies, the
"untouched model", is the same queries behind their few-shot demonstrations.

Shapes: N prompts, B rows, G gate sets, S rows of all gate sets, A heads in flat order, K tasks, J
predicting columns, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from headloc.errors import HeadlocError, TaskError, suggest
from headloc.lm.batch import RowIndex, TokenBatch, as_row_index
from headloc.objectives.base import Objective
from headloc.objectives.mean_cache import MeanCache
from headloc.objectives.prompts import Progress, PromptSet, encode_examples, repeated
from headloc.objectives.task_means import TaskMeans, estimate_task_means

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.lm.prefix import PrefixCache
    from headloc.tasks import Example, TaskFamily

_OFF = ("zero", "mean", "shuffled")
_RELATIVE = ("none", "zero_shot")


@dataclass(frozen=True, slots=True)
class ZeroShotRows:
    """Some zero-shot prompts of a set, ready to run.

    Attributes:
        batch: the prompts.
        prefix: keys and values before their last token, or None for full passes.
        task_rows: row of each prompt's task in the task means [B].
        stream: what enters the insertion layer at the columns that run, or None.
    """

    batch: TokenBatch
    prefix: PrefixCache | None
    task_rows: Tensor
    stream: Tensor | None

    @classmethod
    def of(cls, prompts: PromptSet, rows: RowIndex) -> ZeroShotRows:
        """Take some rows of prompts that know their tasks.

        Raises:
            HeadlocError: when they do not.
        """
        if prompts.task_rows is None:
            raise HeadlocError("These prompts do not know their tasks: make them by prompt_set().")
        index = as_row_index(rows, prompts.device)
        prefix = None if prompts.prefix is None else prompts.prefix.rows(index)
        stream = None if prompts.stream is None else prompts.stream[index]
        return cls(prompts.batch.rows(index), prefix, prompts.task_rows[index], stream)

    @property
    def last_prompt_token(self) -> slice:
        """The column of the last prompt token among those that run."""
        column = 0 if self.prefix is not None else self.batch.prompt_columns - 1
        return slice(column, column + 1)


class FromMeans(Objective):
    """Gate task means on zero-shot prompts.

    Args:
        off_value: what a closed head contributes: zero, its cross-task mean, or shuffled, its mean
            over few-shot prompts of all training tasks with their labels shuffled.
        relative_to: none for raw task means, as published; zero_shot to subtract each head's
            zero-shot mean of the task first.
        prompts_per_task: few-shot prompts a task's mean is taken over (100 in the paper).
        cache_dir: folder in which means are kept between runs, or None.
        mlps: gate the means of the feed-forward blocks too.
    """

    bound_to_task = True
    takes_mlps = True

    def __init__(
        self,
        off_value: str = "zero",
        relative_to: str = "none",
        prompts_per_task: int = 100,
        cache_dir: str | None = None,
        mlps: bool = False,
    ) -> None:
        for key, value, known in (
            ("off_value", off_value, _OFF),
            ("relative_to", relative_to, _RELATIVE),
        ):
            if value not in known:
                raise HeadlocError(f"objective.{key}={value!r} is unknown. {suggest(value, known)}")
        if prompts_per_task < 1:
            raise HeadlocError(f"objective.prompts_per_task={prompts_per_task} must be at least 1.")
        self.off_value, self.relative_to = off_value, relative_to
        self.prompts_per_task, self.cache_dir = prompts_per_task, cache_dir
        self.mlps = mlps
        self.means: TaskMeans | None = None
        self.shuffled: TaskMeans | None = None
        self.train_tasks: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return the settings; the cache is not one of them."""
        return self._with_mlps(
            {
                "name": self.name,
                "off_value": self.off_value,
                "relative_to": self.relative_to,
                "prompts_per_task": self.prompts_per_task,
            }
        )

    def prepare(
        self,
        lm: FrozenLM,
        task: TaskFamily,
        *,
        seed: int,
        prompts: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Estimate the means of every task, held-out ones included, `prompts_per_task` each.

        A held-out task's mean comes from its own few-shot prompts; no gate is fitted to it.
        """
        if not task.shots:
            raise TaskError(
                f"objective={self.name} needs few-shot prompts to take means over; task.shots is 0."
            )
        names = (*task.train, *task.held_out)
        cache = None if self.cache_dir is None else MeanCache(self.cache_dir)
        options: dict[str, Any] = {
            "prompts": self.prompts_per_task,
            "seed": seed,
            "cache": cache,
            "mlps": self.mlps,
            "progress": progress,
        }
        means = estimate_task_means(lm, task, names, **options)
        shuffled = None
        if self.off_value == "shuffled":
            shuffled = estimate_task_means(lm, task, task.train, kind="shuffled", **options)
        if self.relative_to == "zero_shot":
            bare = estimate_task_means(lm, task, names, kind="zero_shot", **options)
            means = means.minus(bare)
            shuffled = None if shuffled is None else shuffled.minus(bare)
        self.shuffled = shuffled
        self.train_tasks = tuple(task.train)
        self._take(lm, means)

    def tensors(self) -> dict[str, Tensor]:
        """Return the task means."""
        means = {} if self.means is None else self.means.to_tensors("means")
        shuffled = {} if self.shuffled is None else self.shuffled.to_tensors("shuffled")
        return {**means, **shuffled}

    def prompt_set(
        self,
        lm: FrozenLM,
        task: TaskFamily,
        examples: Sequence[Example],
        *,
        seed: int,
        use: str,
        progress: Progress | None = None,
    ) -> PromptSet:
        """Encode the zero-shot prompts, and the few-shot prompts that they are compared with."""
        means = self._known_means()
        encoded, batch = encode_examples(lm, [item.zero_shot() for item in examples], task.template)
        few_encoded, few_batch = encode_examples(lm, examples, task.template)
        few = PromptSet(tuple(examples), few_encoded, few_batch)
        rows = means.index([item.task for item in examples])
        return PromptSet(
            examples=tuple(examples),
            encoded=encoded,
            batch=batch,
            prefix=lm.kept_prefix(batch, progress=progress),
            reference=few,
            task_rows=rows.to(lm.device),
        )

    def prompt_key(self, example: Example) -> Hashable:
        """Return task, query and answer: demonstrations do not enter a zero-shot prompt."""
        return example.task, example.query, example.answer

    def logits(
        self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates: Tensor | None
    ) -> Tensor:
        """Return logits_BJV of zero-shot prompts under gates; None is the few-shot reference."""
        if gates is None:
            return lm.logits(_reference(prompts).batch.rows(rows))
        return self._gated(lm, ZeroShotRows.of(prompts, rows), gates.to(lm.device))

    def runs_branches(self, lm: FrozenLM) -> bool:
        """Return True: gate sets have rows of their own, as zero-shot prompts share no prefix."""
        return True

    def branched_logits(
        self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates_BGA: Tensor
    ) -> Tensor:
        """Return logits_BGJV of some zero-shot prompts under the gates of G gate sets."""
        gates_SA, branches = gates_BGA.flatten(0, 1).to(lm.device), gates_BGA.shape[1]
        zero_shot = ZeroShotRows.of(prompts, repeated(prompts, rows, branches))
        return self._gated(lm, zero_shot, gates_SA).unflatten(0, (-1, branches))

    def branched_losses(
        self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates_BGA: Tensor
    ) -> Tensor:
        """Return the loss of every gate set on the same rows, losses_G."""
        logits_BGJV = self.branched_logits(lm, prompts, rows, gates_BGA).float()
        target_BJ = prompts.batch.rows(rows).target_BJ
        target_BGJ = target_BJ[:, None].expand(-1, gates_BGA.shape[1], -1)
        flat = cross_entropy(logits_BGJV.flatten(0, 2), target_BGJ.flatten(), reduction="none")
        return flat.view(target_BGJ.shape).sum((0, 2)) / len(target_BJ)

    def loss(self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates_BA: Tensor) -> Tensor:
        """Return -sum_j log p(answer token j) on the zero-shot prompts, averaged over rows."""
        logits_BJV = self.logits(lm, prompts, rows, gates_BA).float()
        target_BJ = prompts.batch.rows(rows).target_BJ
        total = cross_entropy(logits_BJV.flatten(0, 1), target_BJ.flatten(), reduction="sum")
        return total / len(target_BJ)

    @abstractmethod
    def _gated(self, lm: FrozenLM, rows: ZeroShotRows, gates: Tensor) -> Tensor:
        """Return logits_BJV of some zero-shot prompts under gates [A] or [B, A]."""

    def _take(self, lm: FrozenLM, means: TaskMeans) -> None:
        """Keep the means; subclasses prepare what they need of them."""
        self.means = means

    def _known_means(self) -> TaskMeans:
        if self.means is None:
            raise HeadlocError("The task means are missing: call prepare() first.")
        return self.means

    def load_tensors(self, tensors: Mapping[str, Tensor], lm: FrozenLM, task: TaskFamily) -> None:
        """Take the means of a saved circuit, which are those of the task it was found on.

        Raises:
            CircuitError: when they are missing, or are those of another model.
        """
        names = (*task.train, *task.held_out)
        self.train_tasks = tuple(task.train)
        means = TaskMeans.from_tensors(names, tensors, "means", lm, mlps=self.mlps)
        if self.off_value == "shuffled":
            self.shuffled = TaskMeans.from_tensors(
                task.train, tensors, "shuffled", lm, mlps=self.mlps
            )
        self._take(lm, means)


def _reference(prompts: PromptSet) -> PromptSet:
    if prompts.reference is None:
        raise HeadlocError("These prompts were made without their few-shot reference.")
    return prompts.reference
