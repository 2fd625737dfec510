"""Prompt rows for training: which prompts a step sees, reproducibly and without data in the loop.

All prompts are rendered, tokenised and prefix-cached before training; a batch is a vector of row
indices.  The order of an epoch follows from (seed, epoch) alone, so a resumed run sees what an
uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from headloc.errors import HeadlocError
from headloc.objectives.prompts import ROWS_PER_PASS
from headloc.randomness import stream


class _Rows(Dataset[Tensor]):
    """A data set whose items are batches of row indices: `batch[index]` is that index."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: list[int]) -> Tensor:
        return torch.tensor(index)


class EpochOrder(Sampler[list[int]]):
    """Batches of shuffled rows; Lightning calls `set_epoch` before every epoch."""

    def __init__(
        self, rows: int, batch_size: int, seed: int, *, shuffle: bool, bootstrap: bool = False
    ) -> None:
        self.rows, self.batch_size, self.seed, self.shuffle = rows, batch_size, seed, shuffle
        self.epoch = 0
        pool = np.arange(rows)
        self.pool = stream(seed, "train", "bootstrap").choice(pool, rows) if bootstrap else pool

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        # An incomplete last batch is dropped in training only: every step weighs the same.
        if self.shuffle:
            return max(1, self.rows // self.batch_size)
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.pool.tolist()
        if self.shuffle:
            order = (
                stream(self.seed, "train", f"order-{self.epoch}").permutation(self.pool).tolist()
            )
        for number in range(len(self)):
            yield order[number * self.batch_size : (number + 1) * self.batch_size]


class PromptRows(L.LightningDataModule):
    """Row indices of the training and the selection prompts.

    Args:
        train_rows: number of training prompts.
        selection_rows: number of prompts that gates are validated on.
        batch_size: prompts per step.
        seed: seed of the run.
        bootstrap: train on a resample (with replacement) of the training prompts.
    """

    def __init__(
        self,
        train_rows: int,
        selection_rows: int,
        batch_size: int,
        seed: int,
        *,
        bootstrap: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise HeadlocError(f"data.batch_size={batch_size} must be at least 1.")
        self.train_rows, self.selection_rows = train_rows, selection_rows
        self.batch_size, self.seed = min(batch_size, train_rows), seed
        self.bootstrap = bootstrap

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Batches of rows of the training prompts."""
        order = EpochOrder(
            self.train_rows, self.batch_size, self.seed, shuffle=True, bootstrap=self.bootstrap
        )
        return _loader(order)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Batches of rows of the selection prompts."""
        # Validation needs no gradient: larger batches fit.
        rows = max(self.batch_size, ROWS_PER_PASS)
        return _loader(EpochOrder(self.selection_rows, rows, self.seed, shuffle=False))


def _loader(order: EpochOrder) -> DataLoader[Tensor]:
    # Without a generator of its own a loader draws a seed for its workers from torch's global one.
    return DataLoader(
        _Rows(order.rows), sampler=order, batch_size=None, generator=torch.Generator()
    )
