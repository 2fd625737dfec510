"""The three contexts that one set of queries is scored in: zero-shot, few-shot, shuffled few-shot.

All rows of the verdict table are about the same examples, so that every comparison is paired.

Shapes: N prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headloc.objectives import InPlace, PromptSet
from headloc.objectives.prompts import Progress, encode_examples
from headloc.randomness import stream
from headloc.refinement.injection import Insertion, known_tasks, with_stream

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives import FunctionVector
    from headloc.tasks import Example, TaskFamily


@dataclass(frozen=True, slots=True)
class Contexts:
    """The same N queries in three contexts.

    Attributes:
        zero_shot: the query alone.
        few_shot: behind its demonstrations.
        shuffled: behind its demonstrations with their labels permuted; None where that is left out.
    """

    zero_shot: PromptSet
    few_shot: PromptSet
    shuffled: PromptSet | None

    def __len__(self) -> int:
        return len(self.zero_shot)


def make_contexts(
    lm: FrozenLM,
    task: TaskFamily,
    objective: FunctionVector,
    in_place: InPlace,
    examples: Sequence[Example],
    *,
    seed: int,
    use: str,
    shuffle: bool = True,
    progress: Progress | None = None,
) -> Contexts:
    """Encode examples in every context and run what does not depend on the condition.

    Args:
        lm: the frozen model.
        task: the task family that drew the examples.
        objective: the prepared function vector.
        in_place: the prepared ablation of few-shot prompts.
        examples: the examples.
        seed: seed of the run.
        use: name of the random stream for the shuffles.
        shuffle: whether to make the shuffled context.
        progress: called with (rows cached, rows in all) of one context after the other.

    Raises:
        TaskError: when an example's labels cannot be shuffled.
    """
    zero_shot = objective.prompt_set(lm, task, examples, seed=seed, use=use, progress=progress)
    few_shot = in_place.prompt_set(lm, task, examples, seed=seed, use=use, progress=progress)
    shuffled = None
    if shuffle:
        rng = stream(seed, use, "shuffled")
        changed = [task.shuffled(example, rng) for example in examples]
        shuffled = _injectable(lm, task, objective, changed, zero_shot, progress)
    return Contexts(zero_shot, few_shot, shuffled)


def _injectable(
    lm: FrozenLM,
    task: TaskFamily,
    objective: FunctionVector,
    examples: Sequence[Example],
    zero_shot: PromptSet,
    progress: Progress | None,
) -> PromptSet:
    """Return few-shot prompts that vectors can be added to."""
    encoded, batch = encode_examples(lm, examples, task.template)
    prefix = lm.kept_prefix(batch, progress=progress)
    prompts = PromptSet(
        examples=tuple(examples),
        encoded=encoded,
        batch=batch,
        prefix=prefix,
        task_rows=known_tasks(zero_shot),
    )
    # Without a prefix every column would have to be kept; full passes are the simpler fallback.
    if prefix is None:
        return prompts
    return with_stream(lm, prompts, Insertion.of(objective, lm).layer)
