"""How much a refinement scans and scores."""

from __future__ import annotations

from dataclasses import dataclass, fields

from headloc.errors import HeadlocError

_MAY_BE_ZERO = ("aie_prompts", "size_prompts", "random_sets")


@dataclass(frozen=True, slots=True)
class RefineSettings:
    """Sizes of a refinement; every set of prompts has its own random stream.

    Attributes:
        doses: the largest dose of the scan.
        scan_prompts: prompts of the training tasks for the dose scan and every other choice.
        prompts: fresh prompts of the table, of the training tasks and again of held-out tasks.
        aie_prompts: label-shuffled prompts per training task for AIE; 0 leaves AIE and the
            shuffled context out.
        size_prompts: prompts drawn per split to compare the learned ranking with AIE's at every
            size, repeated zero-shot prompts dropped; 0 leaves that out.
        mean_prompts: prompts that the means of the few-shot ablation are estimated on.
        random_sets: random head sets of every control.
        rows_per_pass: rows that run together.
    """

    doses: int = 20
    scan_prompts: int = 512
    prompts: int = 512
    aie_prompts: int = 25
    size_prompts: int = 1024
    mean_prompts: int = 500
    random_sets: int = 20
    rows_per_pass: int = 2048

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise HeadlocError(
                    f"{field.name}={value!r} must be a whole number, {least} or above."
                )
