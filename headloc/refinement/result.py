"""The result of a refinement, and which circuits can be refined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headloc.baselines.aie import IndirectEffects
from headloc.errors import CircuitError
from headloc.heads import HeadId
from headloc.lm.ledger import TokenLedger
from headloc.objectives import FunctionVector
from headloc.refinement.dose_scan import DoseScan, ScanCost
from headloc.refinement.injection import Insertion
from headloc.refinement.scorer import HeadSets
from headloc.refinement.settings import RefineSettings
from headloc.refinement.significance import Significance
from headloc.refinement.size_curve import SizeCurve
from headloc.refinement.table import SplitTable


@dataclass(frozen=True, slots=True)
class Refinement:
    """Everything a refinement found.

    Attributes:
        insertion: where vectors were added.
        scan: the dose scan.
        cost: what the scan cost, in closed form.
        significance: significant and main heads.
        sets: the head sets of the table.
        aie: indirect effects of all heads, or None.
        residual_layer: layer of the residual-stream reference.
        residual_accuracies: accuracy of every layer on the prompts it was chosen on.
        tables: "seen" and, where the task has held-out tasks, "held_out".
        sizes: the learned ranking against AIE's at every size, by split; empty where left out.
        ledger: tokens run, by stage.
        settings: sizes.
        seed: seed of the prompts, controls and intervals.
    """

    insertion: Insertion
    scan: DoseScan
    cost: ScanCost
    significance: Significance
    sets: HeadSets
    aie: IndirectEffects | None
    residual_layer: int
    residual_accuracies: tuple[float, ...]
    tables: Mapping[str, SplitTable]
    sizes: Mapping[str, SizeCurve]
    ledger: TokenLedger
    settings: RefineSettings
    seed: int


def check_refinable(
    objective: Mapping[str, object], heads: Sequence[HeadId], mlps: Sequence[int] | None = None
) -> None:
    """Refuse a circuit that has nothing to scan, or that heads alone do not make up.

    Raises:
        CircuitError: for another objective than the function vector, for no heads, or for kept
            feed-forward blocks.
    """
    if mlps or (mlps is not None and objective.get("off_value") != "zero"):
        # A block reads what the heads before it wrote, so its task mean already holds theirs:
        # beside it no dose of a head would measure what that head carries.
        raise CircuitError(
            "The function vector of this circuit sums means of feed-forward blocks (kept: layers "
            f"{', '.join(map(str, mlps)) or 'none, all at their mean'}). They hold what the heads "
            "wrote, so a dose scan could not tell what a head carries by itself. Localize with "
            "gates.mlps=false to refine heads."
        )
    name = objective.get("name")
    if name != FunctionVector.name:
        raise CircuitError(
            f"This circuit was found with objective={name}, but a dose scan scales the task means "
            "that a function vector is the sum of. Find heads with `headloc localize "
            "objective=function_vector`."
        )
    if not heads:
        raise CircuitError(
            "This circuit holds no heads, so there is nothing to refine. Localize with a smaller "
            "sparsity.weight."
        )
