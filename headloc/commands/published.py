"""A run beside what was published for its experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from headloc.references import Comparison, Reference, compare, load_reference, reference_names
from headloc.references.comparison import UNMEASURED

if TYPE_CHECKING:
    from headloc.circuit import Circuit

_NO_SETTINGS = ("experiment", "output_dir", "logger", "resume", "model.device", "hydra")


def own_reference() -> Reference | None:
    """Return the reference of the experiment that Hydra composed; None where it has none."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return None
    name = HydraConfig.get().runtime.choices.get("experiment")
    return load_reference(name) if name in reference_names() else None


def changes(further: Iterable[str] = ()) -> list[str]:
    """Return the settings given to this run that change what is measured.

    Args:
        further: settings given beside those that Hydra knows.
    """
    from hydra.core.hydra_config import HydraConfig

    given = [*HydraConfig.get().overrides.task, *further]
    return [text for text in given if not _key(text).startswith(_NO_SETTINGS)]


def beside_published(
    reference: Reference,
    circuit: Circuit,
    metrics: Mapping[str, float],
    *,
    given: list[str],
    unrefined: str = UNMEASURED,
) -> Comparison:
    """Put a circuit and its figures beside a reference.

    Args:
        reference: what was published.
        circuit: the circuit of the run.
        metrics: flat figures of the run, those of its refinement included.
        given: settings that were changed from the experiment.
        unrefined: what to say of figures of a refinement that are not among the metrics.
    """
    return compare(
        reference,
        metrics,
        model=str(circuit.model["name"]),
        selected=circuit.heads,
        ranking=_ranking(circuit),
        changes=given,
        unrefined=unrefined,
    )


def of_localization(circuit: Circuit) -> Comparison | None:
    """Return what localization alone can compare with its experiment's reference."""
    reference = own_reference()
    if reference is None:
        return None
    elsewhere = f"not measured by this command: run headloc reproduce {reference.experiment}"
    return beside_published(
        reference, circuit, circuit.metrics, given=changes(), unrefined=elsewhere
    )


def _ranking(circuit: Circuit) -> list[Any]:
    from headloc.circuit.exports import all_heads

    scores = circuit.scores.tolist()
    heads = all_heads(circuit)
    return [heads[i] for i in sorted(range(len(heads)), key=lambda i: (-scores[i], i))]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
