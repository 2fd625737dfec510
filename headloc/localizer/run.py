"""Localization from a frozen model and a task to a circuit with its verdict.

    means -> prompts and prefixes -> training -> selection -> verdict -> Circuit

With a `PathSparsity` a bank of gate sets is trained at once, and its path takes the place of the
selection rule and of the replicates.

Five random streams keep them apart: what the off-values are estimated on, what gates are trained
on, what the size is chosen on, what is finally scored, and the controls.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from headloc.bank.metrics import path_metrics
from headloc.bank.result import PathResult
from headloc.bank.settings import PathSparsity
from headloc.circuit import Circuit
from headloc.components import MlpId
from headloc.errors import HeadlocError
from headloc.evaluation.splits import judge_task, verdict_metrics
from headloc.evaluation.verdict import SplitVerdict
from headloc.gates import HardConcreteGates, HeadGates, PenaltySparsity, SparsityControl
from headloc.heads import HeadId
from headloc.journal import Journal
from headloc.lm.frozen import FrozenLM
from headloc.lm.keeping import PrefixKeeper
from headloc.lm.ledger import TokenLedger
from headloc.localizer.choice import find
from headloc.localizer.circuits import make_circuit, size_metrics
from headloc.localizer.fitting import fit, make_module, make_trainer
from headloc.localizer.history import GateHistory, TrainingCost
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.parts import Parts, check_parts, cover_mlps, settled
from headloc.localizer.prompt_sets import prepare
from headloc.localizer.replicates import reference_metrics, replicate, search_greedily
from headloc.localizer.selection import Auto, Selection
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives import InPlace, Objective
from headloc.stages import Stages, silent
from headloc.tasks import TaskFamily

__all__ = ["Localization", "check_parts", "localize"]


@dataclass(frozen=True, slots=True)
class Localization:
    """Everything a run found.

    Attributes:
        circuit: the head set with its provenance and metrics.
        verdicts: "seen" and, where the task has held-out tasks, "held_out".
        history: gates and curves over training.
        ledger: cost of the run.
        metrics: flat figures, the content of metrics.json.
        replicates: circuits of further seeds, for stability.
        greedy: what greedy backward elimination left open, when asked for.
        path: the whole sparsity path, where one was trained.
    """

    circuit: Circuit
    verdicts: Mapping[str, SplitVerdict]
    history: GateHistory
    ledger: TokenLedger
    metrics: Mapping[str, float]
    replicates: tuple[Circuit, ...] = ()
    greedy: tuple[HeadId | MlpId, ...] | None = None
    path: PathResult | None = None


def localize(
    lm: FrozenLM,
    task: TaskFamily,
    *,
    objective: Objective | None = None,
    gates: HeadGates | None = None,
    sparsity: SparsityControl | PathSparsity | None = None,
    selection: Selection | None = None,
    data: DataSettings | None = None,
    optimizer: OptimizerSettings | None = None,
    verdict: VerdictSettings | None = None,
    trainer: Mapping[str, Any] | None = None,
    callbacks: list[L.Callback] | None = None,
    seed: int = 0,
    resume_from: str | Path | None = None,
    journal: Journal | None = None,
    stages: Stages = silent,
) -> Localization:
    """Find the heads that carry a few-shot task.

    Args:
        lm: the frozen model.
        task: the task family.
        objective: how gates intervene; in place with mean off-values when None.
        gates: the relaxation; hard concrete when None.
        sparsity: the pressure towards few heads, or a whole path of penalties; a fixed penalty
            when None.
        selection: from gates to heads; `Auto` when None.
        data: sizes of the prompt sets.
        optimizer: settings of Adam.
        verdict: controls of the verdict.
        trainer: options of `lightning.Trainer`.
        callbacks: further Lightning callbacks.
        seed: everything random follows from it.
        resume_from: a checkpoint of an interrupted run with the same settings.
        journal: keeps finished stages, and gives those of an interrupted run back.
        stages: shows the progress of the long steps.

    Raises:
        HeadlocError: when the model cannot do the task on any of its prompts, or settings clash.
    """
    start = time.monotonic()
    sparsity = sparsity or PenaltySparsity()
    parts = Parts(
        lm=lm,
        task=task,
        objective=objective or InPlace(),
        gates=gates or HardConcreteGates(),
        sparsity=sparsity,
        selection=settled(selection or Auto(), sparsity),
        data=data or DataSettings(),
        optimizer=optimizer or OptimizerSettings(),
        verdict=verdict or VerdictSettings(),
        trainer=dict(trainer or {}),
        seed=seed,
    )
    # What can be refused is refused before any work is done.
    cover_mlps(parts.objective, parts.gates)
    check_parts(lm, task, parts.gates, sparsity, parts.selection)
    lm.keeper = PrefixKeeper(parts.data.cache)
    history, ledger, journal = GateHistory(), TokenLedger(), journal or Journal()
    cost = TrainingCost(ledger)
    _probe(lm, parts.objective)
    fitter = make_trainer(parts, [history, cost, *(callbacks or [])])
    prompts = prepare(parts, ledger, stages, journal)
    journal.begin()
    module = make_module(parts, prompts, seed)
    with ledger.counting(lm, "train"):
        fit(parts, prompts, fitter, module, resume_from)
    ledger.add_processes("train", fitter.world_size)
    if not history.values:
        raise HeadlocError(
            "Training ended before its first epoch was complete, so there are no gates to read. "
            "Give a larger trainer.max_epochs or trainer.max_steps."
        )
    with ledger.counting(lm, "selection"), stages("selecting heads") as progress:
        found = find(parts, prompts, history, module, progress, journal, ledger)
    with ledger.counting(lm, "verdict"):
        verdicts = judge_task(
            parts.objective,
            lm,
            task,
            found.heads,
            seed=seed,
            test_prompts=parts.data.test_prompts,
            held_out_prompts=parts.data.held_out_prompts,
            random_sets=parts.verdict.random_sets,
            stages=stages,
            fitted=(*prompts.train.examples, *prompts.selection.examples),
            journal=journal,
            ledger=ledger,
        )
    with ledger.counting(lm, "replicates"):
        replicates = replicate(parts, prompts, stages, journal, ledger)
    with ledger.counting(lm, "greedy"):
        greedy = search_greedily(parts, prompts, stages, journal, ledger)
    metrics = {
        **verdict_metrics(verdicts),
        **size_metrics(parts, found, history),
        **({} if found.path is None else path_metrics(found.path)),
        **reference_metrics(found.heads, replicates, greedy, parts.objective.components(lm)),
        **ledger.to_dict(),
        "seed": seed,
        "time/seconds": time.monotonic() - start,
    }
    circuit = make_circuit(parts, found, seed, metrics)
    stable = tuple(make_circuit(parts, other, number, {}) for number, other in replicates)
    return Localization(circuit, verdicts, history, ledger, metrics, stable, greedy, found.path)


def _probe(lm: FrozenLM, objective: Objective) -> None:
    """Find out what a model can do before its passes are counted.

    It is found out once per model: a second run in the same process must not cost less.
    """
    _ = lm.supports_prefix_cache
    if objective.mlps:
        _ = lm.mlps
