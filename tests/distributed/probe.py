"""A Lightning callback that writes down what each process of a run ends training with."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from headloc.files import write_json
from headloc.localizer.module import GateTraining
from tests.trust.drawn import digest


class Probe(L.Callback):
    """Mark the frozen model of every process differently, and see what is left of the marks.

    Args:
        folder: where rank-N.json is written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.batches: list[list[int]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the frozen model a weight and a buffer with the number of the process."""
        assert isinstance(pl_module, GateTraining)
        mark = torch.full((3,), float(trainer.global_rank))
        pl_module.lm.register_parameter("mark", torch.nn.Parameter(mark, requires_grad=False))
        pl_module.lm.register_buffer("buffered_mark", mark.clone())

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: torch.Tensor, index: int
    ) -> None:
        """Take down the rows of a step, of all processes."""
        self.batches.append(batch.tolist())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the marks, what was drawn, and the trained state."""
        assert isinstance(pl_module, GateTraining)
        content = {
            "drawn": {
                "train": digest(pl_module.train_prompts.encoded),
                "selection": digest(pl_module.selection_prompts.encoded),
                "batches": digest(self.batches),
            },
            "processes": trainer.world_size,
            "marks": [pl_module.lm.mark.tolist(), pl_module.lm.buffered_mark.tolist()],
            "state": {name: value.tolist() for name, value in pl_module.state_dict().items()},
            "curves": {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if name in ("train/task_loss", "val/accuracy", "gates/open_sampled")
            },
        }
        write_json(self.folder / f"rank-{trainer.global_rank}.json", content)
