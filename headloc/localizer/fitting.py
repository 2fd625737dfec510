"""The training of one gate set, or of a bank: Lightning's trainer, the module, and resuming."""

from __future__ import annotations

import copy
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException

from headloc.bank.module import BankLocalizer
from headloc.bank.settings import PathSparsity
from headloc.errors import HeadlocError
from headloc.localizer.checkpoints import AtomicCheckpoints
from headloc.localizer.data import PromptRows
from headloc.localizer.module import GateTraining, HeadLocalizer
from headloc.localizer.parts import Parts
from headloc.localizer.prompt_sets import Prompts
from headloc.localizer.strategy import check_parallel, parallel_options


def make_trainer(parts: Parts, callbacks: list[L.Callback]) -> L.Trainer:
    """Make the trainer; without a logger or a checkpoint callback it writes nothing.

    Raises:
        HeadlocError: when Lightning refuses its options.
    """
    options: dict[str, Any] = {
        "max_epochs": 12,
        "accelerator": "auto",
        "devices": 1,
        "logger": False,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "log_every_n_steps": 4,
        **parts.trainer,
    }
    check_parallel(options, parts.lm, min(parts.data.batch_size, parts.data.train_prompts))
    options = parallel_options(options, parts.lm)
    chosen = [*(options.pop("callbacks", None) or []), *callbacks]
    saves = any(isinstance(callback, L.pytorch.callbacks.ModelCheckpoint) for callback in chosen)
    options.setdefault("enable_checkpointing", saves)
    options["plugins"] = _with_atomic_checkpoints(options.get("plugins"))
    epochs, steps = options["max_epochs"], options.get("max_steps", -1)
    if steps == -1 and (not isinstance(epochs, int) or epochs < 1):
        raise HeadlocError(f"trainer.max_epochs={epochs!r} must be a whole number above 0.")
    try:
        with _expected_warnings():
            return L.Trainer(**options, callbacks=chosen)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise HeadlocError(f"Lightning refuses these trainer options: {error}") from error


def _with_atomic_checkpoints(plugins: Any) -> list[Any]:
    """Return the plugins of a trainer with ours, unless checkpoints are somebody else's already."""
    given = list(plugins) if isinstance(plugins, list | tuple) else [plugins] if plugins else []
    if any(isinstance(plugin, CheckpointIO) for plugin in given):
        return given
    return [*given, AtomicCheckpoints()]


def make_module(parts: Parts, prompts: Prompts, seed: int) -> GateTraining:
    """Make the gates to train: one gate set, or the bank of a path."""
    shared = (prompts.train, prompts.selection, parts.optimizer)
    if isinstance(parts.sparsity, PathSparsity):
        members = parts.sparsity.members(seed)
        return BankLocalizer(parts.lm, parts.objective, parts.gates, members, *shared)
    gates, sparsity = copy.deepcopy(parts.gates), copy.deepcopy(parts.sparsity)
    return HeadLocalizer(parts.lm, parts.objective, gates, sparsity, *shared, seed)


def fit(
    parts: Parts,
    prompts: Prompts,
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
    except SystemExit as left:
        # Lightning turns an interrupt into an exit, and leaves further ones ignored.
        interrupt = left.__context__
        if not isinstance(interrupt, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise interrupt from None


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
