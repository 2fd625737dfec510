"""What a sparsity path is asked for: penalties, seeds, and what its circuit must keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headloc.errors import HeadlocError
from headloc.gates import HeadGates
from headloc.localizer.selection import Auto, Selection

WEIGHTS = (0.005, 0.009, 0.016, 0.029, 0.052, 0.093, 0.167, 0.3)
"""Penalties of the default path, log-spaced, in nats per open head."""

_SEED_STEP = 1000


@dataclass(frozen=True, slots=True)
class Member:
    """One gate set of a bank.

    Attributes:
        weight: its penalty, in nats of the task loss per open head.
        seed: seed of its initial values and its noise.
    """

    weight: float
    seed: int


class PathSparsity:
    """A bank of gate sets, one per penalty and seed, in place of a single sparsity control.

    Args:
        weights: the penalties; they are put in rising order.
        seeds: gate sets at every penalty.
        keep: share of the full model's accuracy on selection prompts that the recommended circuit
            keeps.
        stable_share: a head is stable when at least this share of the seeds chooses it.

    Raises:
        HeadlocError: when an option is out of range.
    """

    #: No number of heads is asked for: the path runs through all sizes.
    target: int | None = None

    def __init__(
        self,
        weights: Sequence[float] = WEIGHTS,
        seeds: int = 3,
        keep: float = 0.95,
        stable_share: float = 0.6,
    ) -> None:
        self.weights = _checked_weights(weights)
        if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
            raise HeadlocError(f"sparsity.seeds={seeds!r} must be a whole number above 0.")
        for name, share in (("keep", keep), ("stable_share", stable_share)):
            if not 0 < share <= 1:
                raise HeadlocError(f"sparsity.{name}={share} must lie in (0, 1].")
        self.seeds, self.keep, self.stable_share = seeds, float(keep), float(stable_share)

    def members(self, seed: int) -> tuple[Member, ...]:
        """Return the gate sets of a run, by penalty and then by seed.

        Gate sets of one seed share their initial values and noise at every penalty, so that
        penalties are compared in pairs; the first seed is the run's own.
        """
        seeds = [seed + _SEED_STEP * number for number in range(self.seeds)]
        return tuple(Member(weight, own) for weight in self.weights for own in seeds)

    def check(self, gates: HeadGates, selection: Selection) -> None:
        """Refuse gates that ignore a penalty, and a selection rule that would never be asked.

        Raises:
            HeadlocError: saying what to choose instead.
        """
        proximal = type(gates).after_step is not HeadGates.after_step
        if not (gates.penalty_in_loss or proximal):
            raise HeadlocError(
                f"sparsity=path varies the penalty, but {type(gates).__name__} takes none: one run "
                "orders the heads at every size. Use sparsity=penalty with these gates, or "
                "gates=hard_concrete or gates=l1 with sparsity=path."
            )
        if not isinstance(selection, Auto):
            raise HeadlocError(
                f"sparsity=path recommends a circuit itself, so selection={selection.name} would "
                "have no effect. Leave selection=auto and set sparsity.keep and "
                "sparsity.stable_share."
            )


def _checked_weights(weights: Sequence[float]) -> tuple[float, ...]:
    listed = isinstance(weights, Sequence) and not isinstance(weights, str)
    if not listed or not weights:
        raise HeadlocError(
            f"sparsity.weights={weights!r} must be a list of at least one penalty, such as "
            "[0.01,0.03,0.1]."
        )
    for weight in weights:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            raise HeadlocError(
                f"sparsity.weights holds {weight!r}; give finite numbers of 0 or above."
            )
    if len(set(weights)) < len(weights):
        raise HeadlocError(
            f"sparsity.weights={list(weights)} names a penalty twice. For more gate sets at one "
            "penalty raise sparsity.seeds."
        )
    return tuple(sorted(float(weight) for weight in weights))
