"""What the verdict table is about, and what scoring it needs beside the prompts.

Shapes: K tasks, L layers, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from headloc.baselines.aie import IndirectEffects
from headloc.heads import HeadLayout
from headloc.objectives import InPlace
from headloc.refinement.injection import ROWS_PER_PASS, Insertion
from headloc.refinement.significance import Significance
from headloc.refinement.vectors import HeadVectors

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


@dataclass(frozen=True, slots=True)
class HeadSets:
    """The head sets that the table is about, as flat indices.

    Attributes:
        selected: heads that training selected.
        significant: those of them that are significant.
        main: those of them that carry most of the task.
        doses: best dose of each main head, chosen on other prompts.
        aie: as many heads by AIE as were selected, or None.
        aie_main: as many heads by AIE as there are main heads, or None.
    """

    selected: tuple[int, ...]
    significant: tuple[int, ...]
    main: tuple[int, ...]
    doses: Mapping[int, int]
    aie: tuple[int, ...] | None
    aie_main: tuple[int, ...] | None

    @classmethod
    def of(
        cls,
        layout: HeadLayout,
        selected: tuple[int, ...],
        significance: Significance,
        aie: IndirectEffects | None,
    ) -> HeadSets:
        """Collect the sets from the tests and from AIE."""
        main = tuple(layout.indices(significance.main))
        doses = {layout.index(h): significance.effect(h).best_dose for h in significance.main}
        return cls(
            selected=selected,
            significant=tuple(layout.indices(significance.significant)),
            main=main,
            doses=doses,
            aie=None if aie is None else tuple(aie.top(len(selected))),
            aie_main=None if aie is None else tuple(aie.top(len(main))),
        )


@dataclass(frozen=True, slots=True)
class Scorer:
    """What scoring a split needs beside its prompts.

    Attributes:
        lm: the frozen model.
        vectors: head contributions.
        insertion: where vectors are added.
        in_place: the prepared ablation of few-shot prompts.
        theta_KLD: mean residual streams (Hendel et al. 2023).
        residual_layer: layer whose output they replace, chosen on other prompts.
        random_sets: number of random sets of every control.
        rows_per_pass: rows of a pass.
        seed: seed of the controls and intervals.
    """

    lm: FrozenLM
    vectors: HeadVectors
    insertion: Insertion
    in_place: InPlace
    theta_KLD: Tensor
    residual_layer: int
    random_sets: int = 20
    rows_per_pass: int = ROWS_PER_PASS
    seed: int = 0
