"""What a found circuit is held against: trainings from other seeds, and a greedy search.

Shapes: A heads in flat order.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L

from headloc.bank.settings import PathSparsity
from headloc.components import Components, MlpId
from headloc.evaluation.search import greedy_backward
from headloc.evaluation.subsets import SubsetScorer
from headloc.heads import HeadId
from headloc.journal import Entry, Journal
from headloc.lm.ledger import TokenLedger
from headloc.localizer.choice import Found, select
from headloc.localizer.fitting import fit, make_module, make_trainer
from headloc.localizer.history import GateHistory
from headloc.localizer.parts import Parts
from headloc.localizer.prompt_sets import Prompts
from headloc.objectives.prompts import Progress
from headloc.stages import Stages

Replicate = tuple[int, Found]
"""The seed of a further training, and what it found."""


def replicate(
    parts: Parts, prompts: Prompts, stages: Stages, journal: Journal, ledger: TokenLedger
) -> list[Replicate]:
    """Train again from other seeds, each on a resample of the training prompts."""
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
        "callbacks": [],
    }
    silent_parts = replace(parts, trainer={**parts.trainer, **quiet})
    found: list[Replicate] = []
    # The seeds of a bank tell how stable its heads are.
    if parts.verdict.replicates == 0 or isinstance(parts.sparsity, PathSparsity):
        return found
    with stages("replicates") as progress:
        for number in range(1, parts.verdict.replicates + 1):
            seed = parts.seed + 1000 * number
            steps = _Steps(progress, number - 1, parts.verdict.replicates)
            one = journal.once(
                f"replicate-{number}",
                partial(_train_again, silent_parts, prompts, seed, steps),
                Found.pack,
                Found.unpack,
                ledger=ledger,
                stage="replicates",
            )
            found.append((seed, one))
    return found


def _train_again(parts: Parts, prompts: Prompts, seed: int, steps: L.Callback) -> Found:
    history = GateHistory()
    trainer = make_trainer(parts, [history, steps])
    module = make_module(parts, prompts, seed)
    fit(parts, prompts, trainer, module, seed=seed, bootstrap=True)
    return select(parts, prompts, history)


class _Steps(L.Callback):
    """Report how far the trainings are, after every step of one of them.

    Args:
        progress: called with (steps done, in all).
        before: trainings that are done.
        trainings: trainings in all.
    """

    def __init__(self, progress: Progress, before: int, trainings: int) -> None:
        self._progress, self._before, self._trainings = progress, before, trainings

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Report the steps of all trainings."""
        steps = int(trainer.estimated_stepping_batches)
        self._progress(self._before * steps + trainer.global_step, self._trainings * steps)


def search_greedily(
    parts: Parts, prompts: Prompts, stages: Stages, journal: Journal, ledger: TokenLedger
) -> tuple[HeadId | MlpId, ...] | None:
    """Search greedily, as a reference for how small a circuit could be."""
    if not parts.verdict.greedy:
        return None

    components = parts.objective.components(parts.lm)
    worth = SubsetScorer.of(parts.objective, parts.lm, prompts.selection)
    aim = parts.verdict.greedy_share * prompts.full
    with stages("greedy reference search") as progress:
        found = journal.once(
            "greedy",
            lambda: greedy_backward(components.total, worth, aim, progress),
            lambda heads: Entry(facts={"heads": heads}),
            lambda entry: list(entry.facts["heads"]),
            ledger=ledger,
            stage="greedy",
        )
    names = components.names()
    return tuple(names[index] for index in found)


def reference_metrics(
    heads: list[int],
    replicates: list[Replicate],
    greedy: tuple[HeadId | MlpId, ...] | None,
    components: Components,
) -> dict[str, float]:
    """Return the flat figures of replicates and of the greedy search, as far as there are any."""
    metrics: dict[str, float] = {}
    if replicates:
        overlaps = [_jaccard(set(heads), set(other.heads)) for _, other in replicates]
        metrics["stability/jaccard"] = sum(overlaps) / len(overlaps)
        metrics["stability/jaccard/smallest"] = min(overlaps)
        metrics["stability/replicates"] = len(replicates)
    if greedy is not None:
        blocks = [name.layer for name in greedy if isinstance(name, MlpId)]
        own = [name for name in greedy if isinstance(name, HeadId)]
        metrics["greedy/heads"] = len(own)
        metrics["greedy/jaccard"] = _jaccard(set(heads), set(components.indices(own, blocks)))
        if components.mlps:
            metrics["greedy/mlps"] = len(blocks)
    return metrics


def _jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
