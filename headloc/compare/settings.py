"""How much a comparison draws and searches."""

from __future__ import annotations

from dataclasses import dataclass, fields

from headloc.errors import HeadlocError


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """Sizes of a comparison; every prompt set has its own random stream.

    Attributes:
        seeds: seeds of search and selection prompts, and of the methods.
        search_prompts: prompts that every method ranks heads on.
        selection_prompts: prompts that the size of a circuit is chosen on.
        test_prompts: fresh prompts that everything is scored on, the same for all.
        held_out_prompts: fresh prompts of held-out tasks, for the chosen circuits.
        truth_prompts: prompts that the best sets are searched on.
        finalist_prompts: further prompts that tell the best `finalists` of a size apart.
        finalists: how many.
        beam: width of the beam search for models with more than 16 heads.
        mean_prompts: prompts that mean off-values are estimated on.
        keep: share of the full accuracy that a chosen circuit keeps.
    """

    seeds: int = 3
    search_prompts: int = 512
    selection_prompts: int = 512
    test_prompts: int = 512
    held_out_prompts: int = 256
    truth_prompts: int = 256
    finalist_prompts: int = 512
    finalists: int = 16
    beam: int = 4
    mean_prompts: int = 500
    keep: float = 0.95

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "keep":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise HeadlocError(f"data.{field.name}={value!r} must be a whole number above 0.")
        if not 0 < self.keep <= 1:
            raise HeadlocError(f"data.keep={self.keep} must lie in (0, 1].")
