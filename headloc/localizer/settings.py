"""How many prompts a run draws for what."""

from __future__ import annotations

from dataclasses import dataclass, fields

from headloc.errors import HeadlocError, suggest

PLACES = ("auto", "device", "host", "none")
"""Where prefix caches can be kept."""


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Sizes of the prompt sets; every set has its own random stream.

    Attributes:
        train_prompts: prompts that the gates are fitted to.
        selection_prompts: prompts for validation and for choosing the size.
        test_prompts: fresh prompts of the training tasks for the verdict.
        held_out_prompts: fresh prompts of held-out tasks for the verdict.
        mean_prompts: prompts that mean off-values are estimated on.
        batch_size: prompts per training step.
        cache: where prefix caches are kept: auto, device, host or none (`headloc.lm.keeping`).
    """

    train_prompts: int = 1024
    selection_prompts: int = 512
    test_prompts: int = 512
    held_out_prompts: int = 512
    mean_prompts: int = 500
    batch_size: int = 64
    cache: str = "auto"

    def __post_init__(self) -> None:
        if self.cache not in PLACES:
            raise HeadlocError(
                f"data.cache={self.cache!r} is unknown. {suggest(str(self.cache), PLACES)}"
            )
        for field in fields(self):
            if field.name == "cache":
                continue
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise HeadlocError(f"data.{field.name}={value!r} must be a whole number above 0.")


@dataclass(frozen=True, slots=True)
class VerdictSettings:
    """What the verdict is checked against.

    Attributes:
        random_sets: random head sets of either kind of control.
        replicates: further trainings from other seeds on resampled training prompts, which tell how
            stable the head set is.
        greedy: also search by greedy backward elimination (slow on models with many heads).
        greedy_share: share of the full accuracy that the greedy search keeps.
        average_epochs: epochs whose gates are averaged before selection (Hu et al. 2025).
    """

    random_sets: int = 20
    replicates: int = 0
    greedy: bool = False
    greedy_share: float = 0.95
    average_epochs: int = 3

    def __post_init__(self) -> None:
        for name in ("random_sets", "replicates"):
            if getattr(self, name) < 0:
                raise HeadlocError(f"verdict.{name}={getattr(self, name)} must not be negative.")
        if self.average_epochs < 1:
            raise HeadlocError(f"verdict.average_epochs={self.average_epochs} must be at least 1.")
        if not 0 < self.greedy_share <= 1:
            raise HeadlocError(f"verdict.greedy_share={self.greedy_share} must lie in (0, 1].")
