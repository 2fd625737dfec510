"""Localization from a frozen model and a task to a circuit with its verdict.

    means -> prompts and prefixes -> training -> selection -> verdict -> Circuit

With a `PathSparsity` a bank of gate sets is trained at once, and its path takes the place of the
selection rule and of the replicates.

Five random streams keep them apart: what the off-values are estimated on, what gates are trained
on, what the size is chosen on, what is finally scored, and the controls (METHODS 3.8).
"""

from __future__ import annotations

import copy
import math
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from headloc.bank.metrics import path_metrics
from headloc.bank.module import BankLocalizer
from headloc.bank.result import PathResult
from headloc.bank.search import TrainedBank, find_path
from headloc.bank.settings import PathSparsity
from headloc.circuit import Circuit
from headloc.errors import HeadlocError
from headloc.evaluation.scoring import score
from headloc.evaluation.search import greedy_backward
from headloc.evaluation.splits import judge_task, verdict_metrics
from headloc.evaluation.verdict import SplitVerdict
from headloc.gates import HardConcreteGates, HeadGates, PenaltySparsity, SparsityControl
from headloc.heads import HeadId
from headloc.lm.frozen import FrozenLM
from headloc.lm.ledger import TokenLedger
from headloc.localizer.data import PromptRows
from headloc.localizer.history import GateHistory
from headloc.localizer.module import OPEN, GateTraining, HeadLocalizer, OptimizerSettings
from headloc.localizer.selection import Auto, Ranking, Selection
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives import InPlace, Objective, PromptSet
from headloc.objectives.prompts import Progress
from headloc.randomness import stream, torch_generator
from headloc.stages import Stages, silent
from headloc.tasks import Items, Split, TaskFamily


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
        greedy: heads found by greedy backward elimination, when asked for.
        path: the whole sparsity path, where one was trained.
    """

    circuit: Circuit
    verdicts: Mapping[str, SplitVerdict]
    history: GateHistory
    ledger: TokenLedger
    metrics: Mapping[str, float]
    replicates: tuple[Circuit, ...] = ()
    greedy: tuple[HeadId, ...] | None = None
    path: PathResult | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of: the frozen model, the task, and how heads are gated and chosen."""

    lm: FrozenLM
    task: TaskFamily
    objective: Objective
    gates: HeadGates
    sparsity: SparsityControl | PathSparsity
    selection: Selection
    data: DataSettings
    optimizer: OptimizerSettings
    verdict: VerdictSettings
    trainer: Mapping[str, Any]
    seed: int


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
        selection=_settled(selection or Auto(), sparsity),
        data=data or DataSettings(),
        optimizer=optimizer or OptimizerSettings(),
        verdict=verdict or VerdictSettings(),
        trainer=dict(trainer or {}),
        seed=seed,
    )
    # What can be refused is refused before any work is done.
    check_parts(lm, task, parts.gates, sparsity, parts.selection)
    history = GateHistory()
    fitter = _trainer(parts, [history, *(callbacks or [])])
    ledger = TokenLedger()
    prompts = _prepare(parts, ledger, stages)
    module = _module(parts, prompts, seed)
    with ledger.counting(lm, "train"):
        _fit(parts, prompts, fitter, module, resume_from)
    if not history.values:
        raise HeadlocError(
            "Training ended before its first epoch was complete, so there are no gates to read. "
            "Give a larger trainer.max_epochs or trainer.max_steps."
        )
    with ledger.counting(lm, "selection"), stages("selecting heads") as progress:
        found = _find(parts, prompts, history, module, progress)
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
        )
    with ledger.counting(lm, "replicates"):
        replicates = _replicate(parts, prompts, stages)
    with ledger.counting(lm, "greedy"):
        greedy = _search(parts, prompts, stages)
    metrics = {
        **verdict_metrics(verdicts),
        **_head_metrics(parts, found, history),
        **({} if found.path is None else path_metrics(found.path)),
        **_reference_metrics(found.heads, replicates, greedy, lm),
        **ledger.to_dict(),
        "seed": seed,
        "time/seconds": time.monotonic() - start,
    }
    circuit = _circuit(parts, found, seed, metrics)
    stable = tuple(_circuit(parts, other, number, {}) for number, other in replicates)
    return Localization(circuit, verdicts, history, ledger, metrics, stable, greedy, found.path)


def check_parts(
    lm: FrozenLM,
    task: TaskFamily,
    gates: HeadGates,
    sparsity: SparsityControl | PathSparsity,
    selection: Selection,
) -> None:
    """Refuse settings that do not fit the model or the task.

    Raises:
        HeadlocError: naming the setting, what was given and what is possible.
    """
    total = lm.layout.total
    if isinstance(sparsity, PathSparsity):
        sparsity.check(gates, selection)
    else:
        sparsity.begin(total)
    _settled(selection, sparsity).begin(total)
    copy.deepcopy(gates).allocate(total, torch_generator(0, "check"))
    task.check_items(items="fit")
    task.check_items(items="score")


def _settled(selection: Selection, sparsity: SparsityControl | PathSparsity) -> Selection:
    # A path makes its own choice; Auto stays as it is there and is never asked.
    if isinstance(sparsity, PathSparsity) or not isinstance(selection, Auto):
        return selection
    return selection.settled(sparsity.target)


@dataclass(frozen=True, slots=True)
class _Prompts:
    train: PromptSet
    selection: PromptSet
    full: float
    """Accuracy of the untouched model on the selection prompts."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Chosen heads, the gates and scores [A] behind the choice, and how it was made."""

    heads: list[int]
    gates: Tensor
    scores: Tensor
    selection: Mapping[str, Any]
    path: PathResult | None = None


_Replicate = tuple[int, _Found]


def _prepare(parts: Parts, ledger: TokenLedger, stages: Stages) -> _Prompts:
    """Estimate the off-values, then encode the prompts and run their prefixes."""
    lm, seed = parts.lm, parts.seed
    with ledger.counting(lm, "means"), stages("mean head outputs") as progress:
        parts.objective.prepare(
            lm, parts.task, seed=seed, prompts=parts.data.mean_prompts, progress=progress
        )
    with ledger.counting(lm, "prefixes"), stages("prompts and prefixes") as progress:
        train = _draw(parts, "train", parts.data.train_prompts, items="fit")
        progress(1, 2)
        selection = _draw(parts, "selection", parts.data.selection_prompts, items="fit")
        progress(2, 2)
        full = score(parts.objective, lm, selection, None).accuracy
    ledger.prompt_tokens = _prompt_tokens(train)
    if full == 0.0:
        raise HeadlocError(
            f"{lm.source.name!r} answered none of {len(selection)} prompts of task "
            f"{parts.task.name!r} correctly, so there is nothing to localize. First prompt: "
            f"{selection.encoded[0].text!r}, expected answer {selection.examples[0].answer!r}. "
            "Check task.template, give more task.shots, or use a model that can do the task."
        )
    return _Prompts(train, selection, full)


def _prompt_tokens(prompts: PromptSet) -> float:
    """Return the mean length of a few-shot prompt, the unit of cost."""
    batch = (prompts.reference or prompts).batch
    return float(batch.mask_BT[:, : batch.prompt_columns].sum(1).float().mean())


def _draw(
    parts: Parts, use: str, prompts: int, *, split: Split = "train", items: Items
) -> PromptSet:
    examples = parts.task.draw(prompts, stream(parts.seed, use, split), split=split, items=items)
    return parts.objective.prompt_set(
        parts.lm, parts.task, examples, seed=parts.seed, use=f"{use}-{split}"
    )


def _trainer(parts: Parts, callbacks: list[L.Callback]) -> L.Trainer:
    """Make the trainer; without a logger or a checkpoint callback it writes nothing.

    Raises:
        HeadlocError: when Lightning refuses its options.
    """
    options = {
        "max_epochs": 12,
        "accelerator": "auto",
        "devices": 1,
        "logger": False,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "log_every_n_steps": 4,
        **parts.trainer,
    }
    chosen = [*(options.pop("callbacks", None) or []), *callbacks]
    saves = any(isinstance(callback, L.pytorch.callbacks.ModelCheckpoint) for callback in chosen)
    options.setdefault("enable_checkpointing", saves)
    epochs, steps = options["max_epochs"], options.get("max_steps", -1)
    if steps == -1 and (not isinstance(epochs, int) or epochs < 1):
        raise HeadlocError(f"trainer.max_epochs={epochs!r} must be a whole number above 0.")
    try:
        with _expected_warnings():
            return L.Trainer(**options, callbacks=chosen)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise HeadlocError(f"Lightning refuses these trainer options: {error}") from error


def _module(parts: Parts, prompts: _Prompts, seed: int) -> GateTraining:
    """Make the gates to train: one gate set, or the bank of a path."""
    shared = (prompts.train, prompts.selection, parts.optimizer)
    if isinstance(parts.sparsity, PathSparsity):
        members = parts.sparsity.members(seed)
        return BankLocalizer(parts.lm, parts.objective, parts.gates, members, *shared)
    gates, sparsity = copy.deepcopy(parts.gates), copy.deepcopy(parts.sparsity)
    return HeadLocalizer(parts.lm, parts.objective, gates, sparsity, *shared, seed)


def _fit(
    parts: Parts,
    prompts: _Prompts,
    trainer: L.Trainer,
    module: GateTraining,
    resume_from: str | Path | None = None,
    *,
    seed: int | None = None,
    bootstrap: bool = False,
) -> None:
    """Train the gates of `module`; `seed` orders the prompts."""
    rows = PromptRows(
        len(prompts.train),
        len(prompts.selection),
        parts.data.batch_size,
        parts.seed if seed is None else seed,
        bootstrap=bootstrap,
    )
    if resume_from is not None:
        _check_checkpoint(Path(resume_from), module)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with _expected_warnings():
            trainer.fit(module, rows, ckpt_path=resume_from)
    except SystemExit:
        # Lightning turns an interrupt into an exit, and leaves further ones ignored.
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None


def _check_checkpoint(path: Path, module: GateTraining) -> None:
    """Refuse a checkpoint that is broken or belongs to a run with other settings.

    Raises:
        HeadlocError: saying what it holds and what was expected.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        found = {name: tuple(value.shape) for name, value in state.items()}
    # torch.load raises bare exceptions of many kinds on broken files.
    except Exception as error:
        raise HeadlocError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}). Delete it and start "
            "the run again without resume."
        ) from error
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if found != expected:
        raise HeadlocError(
            f"The checkpoint {path} does not fit this run: it holds {found}, expected {expected}. "
            "Resume with the model, gates and sparsity of the interrupted run."
        )


@contextmanager
def _expected_warnings() -> Iterator[None]:
    """Silence what Lightning says of a frozen model in eval mode and of data in memory."""
    with warnings.catch_warnings():
        for message in (
            "Found .* module.s. in eval mode",
            ".*does not have many workers",
            ".*isinstance.treespec, LeafSpec.",
            "Checkpoint directory .* exists and is not empty",
            "The dirpath has changed from",
            "The number of training batches .* is smaller than the logging interval",
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def _find(
    parts: Parts,
    prompts: _Prompts,
    history: GateHistory,
    module: GateTraining,
    progress: Progress,
) -> _Found:
    """Choose the heads: by the path of a bank, else by the selection rule."""
    if not isinstance(parts.sparsity, PathSparsity) or not isinstance(module, BankLocalizer):
        return _select(parts, prompts, history)
    bank = TrainedBank(module.members, *history.averaged(parts.verdict.average_epochs))
    path = find_path(module.runner, prompts.selection, bank, parts.sparsity, prompts.full, progress)
    chosen = path.recommended
    rule = {"rule": "path", "keep": path.keep, "stable_share": path.stable_share, **chosen.origin}
    return _Found(list(chosen.heads), path.gates, path.ranking, rule, path)


def _select(parts: Parts, prompts: _Prompts, history: GateHistory) -> _Found:
    values_A, scores_A = history.averaged(parts.verdict.average_epochs)

    def accuracy(gates_A: Tensor) -> float:
        return score(parts.objective, parts.lm, prompts.selection, gates_A).accuracy

    heads = parts.selection.select(Ranking(values_A, scores_A), accuracy, prompts.full)
    return _Found(heads, values_A, scores_A, parts.selection.describe())


def _replicate(parts: Parts, prompts: _Prompts, stages: Stages) -> list[_Replicate]:
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
    found: list[_Replicate] = []
    # The seeds of a bank tell how stable its heads are.
    if parts.verdict.replicates == 0 or isinstance(parts.sparsity, PathSparsity):
        return found
    with stages("replicates") as progress:
        for number in range(1, parts.verdict.replicates + 1):
            seed = parts.seed + 1000 * number
            history = GateHistory()
            trainer = _trainer(silent_parts, [history])
            module = _module(silent_parts, prompts, seed)
            _fit(silent_parts, prompts, trainer, module, seed=seed, bootstrap=True)
            found.append((seed, _select(parts, prompts, history)))
            progress(number, parts.verdict.replicates)
    return found


def _search(parts: Parts, prompts: _Prompts, stages: Stages) -> tuple[HeadId, ...] | None:
    """Search greedily, as a reference for how small a circuit could be."""
    if not parts.verdict.greedy:
        return None

    def worth(gates_A: Tensor) -> tuple[float, float]:
        outcome = score(parts.objective, parts.lm, prompts.selection, gates_A)
        return outcome.accuracy, float(outcome.log_probability.mean())

    with stages("greedy reference search") as progress:
        found = greedy_backward(
            parts.lm.layout.total, worth, parts.verdict.greedy_share * prompts.full, progress
        )
    return tuple(parts.lm.layout.head(index) for index in found)


def _circuit(parts: Parts, found: _Found, seed: int, metrics: Mapping[str, float]) -> Circuit:
    return Circuit(
        heads=tuple(parts.lm.layout.head(index) for index in found.heads),
        gates=found.gates,
        scores=found.scores,
        model=parts.lm.source.to_dict(),
        objective=parts.objective.describe(),
        task=parts.task.describe(),
        selection=found.selection,
        seed=seed,
        metrics=dict(metrics),
        tensors=parts.objective.tensors(),
    )


def _head_metrics(parts: Parts, found: _Found, history: GateHistory) -> dict[str, float]:
    total = parts.lm.layout.total
    metrics: dict[str, float] = {
        "heads/count": len(found.heads),
        "heads/total": total,
        "heads/share": len(found.heads) / total,
    }
    if found.path is None:
        metrics["heads/open_hard"] = int((found.gates > OPEN).sum())
        metrics["heads/open_expected"] = history.curves["gates/open_expected"][-1]
    if parts.sparsity.target is not None:
        metrics["heads/requested"] = parts.sparsity.target
    return {key: value for key, value in metrics.items() if not math.isnan(value)}


def _reference_metrics(
    heads: list[int],
    replicates: list[_Replicate],
    greedy: tuple[HeadId, ...] | None,
    lm: FrozenLM,
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    if replicates:
        overlaps = [_jaccard(set(heads), set(other.heads)) for _, other in replicates]
        metrics["stability/jaccard"] = sum(overlaps) / len(overlaps)
        metrics["stability/jaccard/smallest"] = min(overlaps)
        metrics["stability/replicates"] = len(replicates)
    if greedy is not None:
        metrics["greedy/heads"] = len(greedy)
        metrics["greedy/jaccard"] = _jaccard(set(heads), set(lm.layout.indices(greedy)))
    return metrics


def _jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
