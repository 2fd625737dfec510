"""Banks on the planted model, trained for a few steps, and the single runs they must equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import Tensor

from headloc.bank.module import BankLocalizer
from headloc.bank.settings import Member
from headloc.gates import HardConcreteGates, HeadGates, PenaltySparsity
from headloc.lm.frozen import FrozenLM
from headloc.localizer.data import PromptRows
from headloc.localizer.module import GateTraining, HeadLocalizer, OptimizerSettings
from headloc.objectives import InPlace, Objective, PromptSet
from headloc.randomness import stream
from headloc.tasks import TaskFamily
from tests.localizer.planted import OwnAnswers, planted_lm

OPTIMIZER = OptimizerSettings(lr=0.1)
MEMBERS = (Member(0.02, 0), Member(0.02, 1000), Member(0.1, 0), Member(0.1, 1000))
SEED = 7


def prompts_of(
    objective: Objective, lm: FrozenLM, task: TaskFamily, rows: int = 24
) -> tuple[PromptSet, PromptSet]:
    """Prepared training and selection prompts."""
    objective.prepare(lm, task, seed=SEED, prompts=24, progress=None)
    train, selection = (
        objective.prompt_set(
            lm,
            task,
            task.draw(rows, stream(SEED, use), split="train", items="fit"),
            seed=SEED,
            use=use,
        )
        for use in ("train", "selection")
    )
    return train, selection


def fit(module: GateTraining, epochs: int = 3) -> Tensor:
    """Train on the module's prompts and return its final test-time gates."""
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    rows = PromptRows(len(module.train_prompts), len(module.selection_prompts), 8, SEED)
    trainer.fit(module, rows)
    return module.values()


def trained_bank(
    members: Sequence[Member],
    objective: Objective | None = None,
    gates: HeadGates | None = None,
    branched: bool | None = None,
    **options: Any,
) -> Tensor:
    """Final gates [G, A] of a bank."""
    lm = planted_lm()
    own = objective or InPlace("mean")
    prompts = prompts_of(own, lm, OwnAnswers(lm))
    module = BankLocalizer(
        lm, own, gates or HardConcreteGates(), members, *prompts, OPTIMIZER, branched
    )
    return fit(module, **options)


def trained_alone(
    member: Member, objective: Objective | None = None, gates: HeadGates | None = None
) -> Tensor:
    """Final gates [A] of the plain run with a member's penalty and seed."""
    lm = planted_lm()
    own = objective or InPlace("mean")
    prompts = prompts_of(own, lm, OwnAnswers(lm))
    control = PenaltySparsity(member.weight)
    made = gates or HardConcreteGates()
    return fit(HeadLocalizer(lm, own, made, control, *prompts, OPTIMIZER, member.seed))
