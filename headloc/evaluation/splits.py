"""The verdict on a task family: fresh prompts of the training tasks, and of the held-out tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from headloc.evaluation.verdict import SplitVerdict, judge, pack_outcomes, unpack_outcomes
from headloc.journal import Entry, Journal
from headloc.lm.frozen import FrozenLM
from headloc.lm.ledger import TokenLedger
from headloc.objectives import Objective, PromptSet
from headloc.randomness import stream
from headloc.stages import Stages
from headloc.tasks import Example, Split, TaskFamily
from headloc.tasks.different import draw_different


def judge_task(
    objective: Objective,
    lm: FrozenLM,
    task: TaskFamily,
    heads: Sequence[int],
    *,
    seed: int,
    test_prompts: int,
    held_out_prompts: int,
    random_sets: int,
    stages: Stages,
    fitted: Iterable[Example] = (),
    journal: Journal | None = None,
    ledger: TokenLedger | None = None,
) -> dict[str, SplitVerdict]:
    """Score a head set on prompts drawn for this purpose alone, all of them different.

    Args:
        objective: the prepared intervention.
        lm: the frozen model.
        task: the task family.
        heads: flat indices of the chosen heads.
        seed: seed of the prompts, controls and intervals.
        test_prompts: prompts of the training tasks; fewer where no more different ones are found.
        held_out_prompts: the same of the held-out tasks.
        random_sets: number of random sets of either kind.
        stages: shows the progress.
        fitted: examples that the heads were found on; their prompts are not scored.
        journal: keeps the outcomes of each split for a run that is taken up again.
        ledger: where the passes are counted, under "verdict".

    Returns:
        The verdicts "seen" and, where the family has held-out tasks, "held_out".
    """
    splits: dict[str, tuple[Split, int]] = {"seen": ("train", test_prompts)}
    if task.held_out:
        splits["held_out"] = ("held_out", held_out_prompts)
    known = {objective.prompt_key(example) for example in fitted}
    verdicts = {}
    for name, (split, size) in splits.items():
        with stages(f"verdict on {name.replace('_', '-')} tasks") as progress:
            rng = stream(seed, "test", split)
            examples = draw_different(
                task,
                size,
                rng,
                split=split,
                items="score",
                key=objective.prompt_key,
                without=known,
            )
            use = f"test-{split}"
            prompts = objective.prompt_set(
                lm, task, examples, seed=seed, use=use, progress=progress
            )
            verdicts[name] = (journal or Journal()).once(
                f"verdict-{name}",
                partial(
                    judge,
                    objective,
                    lm,
                    prompts,
                    heads,
                    seed=seed,
                    random_sets=random_sets,
                    progress=progress,
                ),
                _pack,
                partial(_unpack, prompts, seed),
                ledger=ledger,
                stage="verdict",
            )
    return verdicts


def _pack(verdict: SplitVerdict) -> Entry:
    facts = {"conditions": list(verdict.outcomes)}
    return Entry(pack_outcomes(verdict.outcomes), facts)


def _unpack(prompts: PromptSet, seed: int, entry: Entry) -> SplitVerdict:
    return SplitVerdict(prompts, unpack_outcomes(entry.facts["conditions"], entry.tensors), seed)


def verdict_metrics(verdicts: dict[str, SplitVerdict]) -> dict[str, float]:
    """Return the flat figures of all verdicts, those of held-out tasks behind `held_out/`."""
    metrics = verdicts["seen"].to_metrics()
    if "held_out" in verdicts:
        metrics |= verdicts["held_out"].to_metrics("held_out/")
    return metrics
