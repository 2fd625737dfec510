"""The history of the gates over training: what selection averages and the report draws.

Shapes: A heads in flat order; of a bank of G gate sets every [A] is a [G, A].
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from torch import Tensor

from headloc.errors import NonFiniteError
from headloc.lm.ledger import StageCost, TokenLedger
from headloc.localizer.module import GateTraining

CURVES = (
    "train/task_loss",
    "train/sparsity_term",
    "val/accuracy",
    "gates/open_expected",
    "gates/open_sampled",
    "gates/open_hard",
)


class TrainingCost(L.Callback):
    """Keep what training has cost in its checkpoints, so that a resumed run counts it too.

    Args:
        ledger: where the passes are counted, under "train".
    """

    def __init__(self, ledger: TokenLedger) -> None:
        self._ledger = ledger

    def state_dict(self) -> dict[str, Any]:
        """Return the cost so far for the checkpoint."""
        return asdict(self._ledger.cost("train"))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Add the cost of the interrupted run."""
        self._ledger.add("train", StageCost(**state_dict))


class GateHistory(L.Callback):
    """Keep the test-time gates, the ranking scores and the curves after every epoch.

    The mean over the last epochs is steadier than the last alone (Hu et al. 2025, selection).
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.curves: dict[str, list[float]] = {name: [] for name in CURVES}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the gates and the latest figures down."""
        if not isinstance(pl_module, GateTraining):
            return
        values, scores = pl_module.values().cpu(), pl_module.scores().cpu()
        # Before the checkpoint of this epoch takes the place of the last good one.
        if not bool(values.isfinite().all() and scores.isfinite().all()):
            raise NonFiniteError(
                f"The gates hold NaN or infinity after epoch {trainer.current_epoch + 1}. Lower "
                "optimizer.lr, and the rates of the sparsity target if there is one."
            )
        self.values.append(values)
        self.scores.append(scores)
        for name, curve in self.curves.items():
            figure = trainer.callback_metrics.get(name)
            curve.append(float("nan") if figure is None else float(figure))

    def state_dict(self) -> dict[str, Any]:
        """Return the history for the checkpoint."""
        return {"values": self.values, "scores": self.scores, "curves": self.curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history of a checkpoint."""
        self.values, self.scores = list(state_dict["values"]), list(state_dict["scores"])
        self.curves = {name: list(curve) for name, curve in state_dict["curves"].items()}

    def averaged(self, epochs: int) -> tuple[Tensor, Tensor]:
        """Return the gates and scores [A] averaged over the last `epochs` epochs."""
        return (
            torch.stack(self.values[-epochs:]).mean(0),
            torch.stack(self.scores[-epochs:]).mean(0),
        )
