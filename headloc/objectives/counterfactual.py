"""Counterfactual prompts: the same queries behind other demonstrations, for resample ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headloc.errors import TaskError
from headloc.lm.batch import EncodedPrompt, TokenBatch, collate
from headloc.objectives.prompts import encode_examples
from headloc.randomness import stream

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Encoded, Example, TaskFamily


def counterfactual_batch(
    lm: FrozenLM,
    task: TaskFamily,
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    *,
    seed: int,
    use: str,
    equal_lengths: bool,
) -> TokenBatch:
    """Return the counterfactual prompts of some examples, behind them the original answers.

    Args:
        lm: the frozen model.
        task: the task family of the examples.
        examples: the examples.
        encoded: the same, encoded.
        seed: seed of the run.
        use: name of the random stream.
        equal_lengths: whether every prompt must be as long as its original.

    Raises:
        TaskError: when lengths must agree and do not.
    """
    rng = stream(seed, use, "counterfactual")
    others, _ = encode_examples(
        lm, [task.counterfactual(example, rng) for example in examples], task.template
    )
    if equal_lengths:
        _require_equal_lengths(encoded, others)
    swapped = [
        EncodedPrompt(other.prompt.prompt_ids, item.prompt.answer_ids, other.prompt.roles)
        for other, item in zip(others, encoded, strict=True)
    ]
    return collate(swapped, lm.pad_id).to(lm.device)


def _require_equal_lengths(encoded: Sequence[Encoded], others: Sequence[Encoded]) -> None:
    for item, other in zip(encoded, others, strict=True):
        if len(item.prompt.prompt_ids) != len(other.prompt.prompt_ids):
            raise TaskError(
                "objective.off_value=resample with objective.positions=all needs counterfactual "
                "prompts of the same length in tokens, but\n"
                f"  {item.text!r} has {len(item.prompt.prompt_ids)} tokens and\n"
                f"  {other.text!r} has {len(other.prompt.prompt_ids)}.\n"
                "Use objective.positions=last, or objective.off_value=mean."
            )
