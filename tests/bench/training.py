"""A training by Lightning of a few steps, to compare single steps with."""

from __future__ import annotations

import lightning as L
from torch import Tensor

from headloc.localizer.data import PromptRows
from headloc.localizer.module import GateTraining


def trained(module: GateTraining, *, batch_size: int, seed: int, steps: int) -> Tensor:
    """Train for some steps and return the test-time gates."""
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    rows = len(module.train_prompts)
    trainer.fit(module, PromptRows(rows, rows, batch_size, seed))
    return module.values()
