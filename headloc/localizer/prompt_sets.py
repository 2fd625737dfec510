"""The prompts of a run: what gates are trained on and what the size is chosen on."""

from __future__ import annotations

from dataclasses import dataclass

from headloc.errors import HeadlocError
from headloc.evaluation.scoring import score
from headloc.journal import Entry, Journal
from headloc.lm.ledger import TokenLedger
from headloc.localizer.parts import Parts
from headloc.objectives import PromptSet
from headloc.objectives.prompts import Progress
from headloc.randomness import stream
from headloc.stages import Stages
from headloc.tasks import Items, Split


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a run.

    Attributes:
        train: what the gates are fitted to.
        selection: what gates are validated on and the size is chosen on.
        full: accuracy of the untouched model on the selection prompts.
    """

    train: PromptSet
    selection: PromptSet
    full: float


def prepare(parts: Parts, ledger: TokenLedger, stages: Stages, journal: Journal) -> Prompts:
    """Estimate the off-values, then encode the prompts and run their prefixes.

    Raises:
        HeadlocError: when the model answers none of the prompts.
    """
    lm, objective = parts.lm, parts.objective
    with ledger.counting(lm, "means"), stages("mean head outputs") as progress:
        journal.once(
            "means",
            lambda: objective.prepare(
                lm,
                parts.task,
                seed=parts.seed,
                prompts=parts.data.mean_prompts,
                progress=progress,
            ),
            lambda _: Entry(objective.tensors()),
            lambda entry: objective.load_tensors(entry.tensors, lm, parts.task),
            ledger=ledger,
            stage="means",
        )
    with ledger.counting(lm, "prefixes"), stages("prompts and prefixes") as progress:
        first, second = parts.data.train_prompts, parts.data.selection_prompts
        both = first + second
        train = _draw(parts, "train", first, lambda done, _: progress(done, both), items="fit")
        progress(first, both)
        selection = _draw(
            parts, "selection", second, lambda done, _: progress(first + done, both), items="fit"
        )
        full = score(parts.objective, lm, selection, None).accuracy
    ledger.prompt_tokens = _prompt_tokens(train)
    if full == 0.0:
        raise HeadlocError(
            f"{lm.source.name!r} answered none of {len(selection)} prompts of task "
            f"{parts.task.name!r} correctly, so there is nothing to localize. First prompt: "
            f"{selection.encoded[0].text!r}, expected answer {selection.examples[0].answer!r}. "
            "Check task.template, give more task.shots, or use a model that can do the task."
        )
    return Prompts(train, selection, full)


def _prompt_tokens(prompts: PromptSet) -> float:
    """Return the mean length of a few-shot prompt, the unit of cost."""
    batch = (prompts.reference or prompts).batch
    return float(batch.mask_BT[:, : batch.prompt_columns].sum(1).float().mean())


def _draw(
    parts: Parts,
    use: str,
    prompts: int,
    progress: Progress,
    *,
    split: Split = "train",
    items: Items,
) -> PromptSet:
    examples = parts.task.draw(prompts, stream(parts.seed, use, split), split=split, items=items)
    return parts.objective.prompt_set(
        parts.lm, parts.task, examples, seed=parts.seed, use=f"{use}-{split}", progress=progress
    )
