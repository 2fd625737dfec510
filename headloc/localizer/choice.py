"""From trained gates to the chosen heads.

Shapes: A heads in flat order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from headloc.bank.module import BankLocalizer
from headloc.bank.result import PathResult
from headloc.bank.search import HeadSet, TrainedBank, find_path
from headloc.bank.settings import PathSparsity
from headloc.evaluation.scoring import score
from headloc.journal import Entry, Journal
from headloc.lm.ledger import TokenLedger
from headloc.localizer.history import GateHistory
from headloc.localizer.module import GateTraining
from headloc.localizer.parts import Parts
from headloc.localizer.prompt_sets import Prompts
from headloc.localizer.selection import Ranking
from headloc.objectives.prompts import Progress


@dataclass(frozen=True, slots=True)
class Found:
    """Chosen heads, the gates and scores [A] behind the choice, and how it was made."""

    heads: list[int]
    gates: Tensor
    scores: Tensor
    selection: Mapping[str, Any]
    path: PathResult | None = None

    def pack(self) -> Entry:
        """Return what a journal keeps of a choice that is no path's."""
        facts = {"heads": self.heads, "selection": dict(self.selection)}
        return Entry({"gates": self.gates, "scores": self.scores}, facts)

    @classmethod
    def unpack(cls, entry: Entry) -> Found:
        """Read `pack` back."""
        facts, tensors = entry.facts, entry.tensors
        return cls(facts["heads"], tensors["gates"], tensors["scores"], facts["selection"])


def find(
    parts: Parts,
    prompts: Prompts,
    history: GateHistory,
    module: GateTraining,
    progress: Progress,
    journal: Journal,
    ledger: TokenLedger,
) -> Found:
    """Choose the heads by the path of a bank, else by the selection rule.

    What an interrupted run has scored or chosen is read from the journal.
    """
    keep = partial(journal.once, ledger=ledger, stage="selection")
    if not isinstance(parts.sparsity, PathSparsity) or not isinstance(module, BankLocalizer):
        choose = partial(select, parts, prompts, history, progress)
        return keep("selection", choose, Found.pack, Found.unpack)

    def accuracies(sets: list[HeadSet]) -> list[float]:
        return keep(
            "path",
            lambda: module.runner.accuracies(prompts.selection, sets, progress),
            lambda values: Entry(facts={"accuracies": values}),
            lambda entry: entry.facts["accuracies"],
        )

    bank = TrainedBank(module.members, *history.averaged(parts.verdict.average_epochs))
    path = find_path(accuracies, bank, parts.sparsity, prompts.full)
    chosen = path.recommended
    rule = {"rule": "path", "keep": path.keep, "stable_share": path.stable_share, **chosen.origin}
    return Found(list(chosen.heads), path.gates, path.ranking, rule, path)


def select(
    parts: Parts, prompts: Prompts, history: GateHistory, progress: Progress | None = None
) -> Found:
    """Choose the heads of one gate set by the selection rule.

    Args:
        parts: what the run is made of.
        prompts: its prompts.
        history: the gates over training.
        progress: called with (head sets scored, the most that can be needed).
    """
    values_A, scores_A = history.averaged(parts.verdict.average_epochs)
    most, done = parts.selection.most_evaluations(len(values_A)), 0

    def accuracy(gates_A: Tensor) -> float:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, max(done, most))
        return score(parts.objective, parts.lm, prompts.selection, gates_A).accuracy

    heads = parts.selection.select(Ranking(values_A, scores_A), accuracy, prompts.full)
    return Found(heads, values_A, scores_A, parts.selection.describe())
