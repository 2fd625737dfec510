"""Loggers of curves that stop where their disk or their service does, and let the run go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.loggers import CSVLogger, WandbLogger

from headloc.faults import in_short

log = logging.getLogger(__name__)


class Tolerant:
    """Goes before a logger of Lightning's: its first error is told, and it is not asked again.

    Attributes:
        lost: what it said when it stopped; None while it works.
    """

    lost: str | None = None
    place: str

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures of a step."""
        self._attempt("log_metrics", metrics, step, step=step)

    def log_hyperparams(self, *params: Any, **more: Any) -> None:
        """Log settings."""
        self._attempt("log_hyperparams", *params, **more)

    def save(self) -> None:
        """Write what is buffered."""
        self._attempt("save")

    def finalize(self, status: str) -> None:
        """End the curves."""
        self._attempt("finalize", status)

    def _attempt(self, name: str, *arguments: Any, step: int | None = None, **more: Any) -> None:
        if self.lost is not None:
            return
        inherited: Callable[..., None] = getattr(super(), name)
        try:
            inherited(*arguments, **more)
        # A service that has died raises errors of many kinds, none of which may end a run.
        except Exception as error:
            self.lost = in_short(error)
            since = "" if step is None else f" from step {step} on"
            log.warning(
                "%s has stopped working (%s): its curves end there%s. The run goes on, and its "
                "report has all of them.",
                self.place,
                self.lost,
                since,
            )


class TolerantCsv(Tolerant, CSVLogger):
    """Curves in a CSV file."""

    place = "curves/metrics.csv"


class TolerantWandb(Tolerant, WandbLogger):
    """Curves in Weights & Biases."""

    place = "W&B"
