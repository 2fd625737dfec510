"""`headloc circuit diff`: how circuits overlap, and what two of them answer together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.circuit import Circuit
from headloc.circuit.diff import Overlap, compare, head_frequency, mean_jaccard
from headloc.commands.arguments import split_arguments, whole_number
from headloc.errors import CircuitError, HeadlocError, suggest
from headloc.files import write_json

if TYPE_CHECKING:
    from headloc.circuit.joint import JointAccuracy

_KNOWN = ("accuracy", "prompts", "seed", "output")
_ACCURACY = ("auto", "true", "false")
_MEAN_PROMPTS = 500
"""Prompts behind means that a circuit does not bring."""


def diff(arguments: Sequence[str]) -> None:
    """Print how circuits compare, pair by pair and together, and the accuracy of a pair."""
    paths, options = split_arguments(arguments, known=_KNOWN)
    if len(paths) < 2:
        raise HeadlocError("Give two circuit folders or more: headloc circuit diff DIR DIR.")
    accuracy = options.get("accuracy", "auto")
    if accuracy not in _ACCURACY:
        raise HeadlocError(f"accuracy={accuracy} is unknown. {suggest(accuracy, _ACCURACY)}")
    if accuracy == "true" and len(paths) > 2:
        raise HeadlocError("accuracy=true scores two circuits. Give two, or accuracy=false.")
    seed = whole_number(options, "seed", 1000)
    prompts = whole_number(options, "prompts", 512, smallest=1)
    circuits = [Circuit.load(path) for path in paths]
    pairs = []
    for (i, first), (j, second) in combinations(enumerate(circuits), 2):
        overlap = compare(first, second)
        pairs.append(_record(paths[i], paths[j], overlap))
        print(
            f"{paths[i]}  ({len(first.heads)} heads)  and  {paths[j]}  ({len(second.heads)} heads)"
        )
        _print_overlap(overlap)
    record: dict[str, Any] = {"pairs": pairs}
    if len(circuits) > 2:
        record |= _together(circuits)
    elif accuracy != "false":
        record |= _accuracies(*circuits, must=accuracy == "true", seed=seed, prompts=prompts)
    if "output" in options:
        write_json(Path(options["output"]), record)
        print(options["output"])


def _print_overlap(overlap: Overlap) -> None:
    print(f"  shared            {_names(overlap.shared)}")
    print(f"  first only        {_names(overlap.only_first)}")
    print(f"  second only       {_names(overlap.only_second)}")
    print(f"  Jaccard index     {overlap.jaccard:.3f}")
    if overlap.mlps is not None:
        blocks = overlap.mlps
        print(f"  blocks shared     {_names(blocks.shared)}")
        print(f"  first only        {_names(blocks.only_first)}")
        print(f"  second only       {_names(blocks.only_second)}")
        print(f"  Jaccard index     {blocks.jaccard:.3f} of feed-forward blocks")
    print(
        f"  rank correlation  {overlap.rank_correlation:.3f} (Spearman), "
        f"{overlap.kendall:.3f} (Kendall) of the scores"
    )


def _record(first: str, second: str, overlap: Overlap) -> dict[str, Any]:
    return {
        "first": first,
        "second": second,
        "shared": list(map(str, overlap.shared)),
        "only_first": list(map(str, overlap.only_first)),
        "only_second": list(map(str, overlap.only_second)),
        "jaccard": overlap.jaccard,
        "spearman": overlap.rank_correlation,
        "kendall": overlap.kendall,
        "mlps": None
        if overlap.mlps is None
        else {
            "shared": list(map(str, overlap.mlps.shared)),
            "only_first": list(map(str, overlap.mlps.only_first)),
            "only_second": list(map(str, overlap.mlps.only_second)),
            "jaccard": overlap.mlps.jaccard,
        },
    }


def _together(circuits: list[Circuit]) -> dict[str, Any]:
    mean, frequency = mean_jaccard(circuits), head_frequency(circuits)
    print(f"all {len(circuits)} circuits: mean Jaccard index {mean:.3f}")
    for head, share in frequency.items():
        print(f"  {head!s:<8} in {share:.0%}")
    return {
        "mean_jaccard": mean,
        "frequency": {str(head): share for head, share in frequency.items()},
    }


def _accuracies(
    first: Circuit, second: Circuit, *, must: bool, seed: int, prompts: int
) -> dict[str, Any]:
    """Score the pair; where it cannot be and need not be, say why."""
    try:
        found, note = _score(first, second, must=must, seed=seed, prompts=prompts)
    except HeadlocError as error:
        if must:
            raise
        print(f"  accuracy          not scored: {error}")
        return {"accuracy": None, "accuracy_note": str(error)}
    for item in found:
        size = f"{item.heads} heads" + ("" if item.mlps is None else f", {item.mlps} blocks")
        where = "" if item.split == "train" else ", held-out tasks"
        print(f"  {item.name:<17} {item.accuracy}  {size}{where}")
    print(f"  on {prompts} fresh prompts of seed {seed}{note}; 95 % bootstrap intervals")
    return {
        "accuracy": [{**asdict(item), "seed": seed} for item in found],
        "accuracy_note": note.strip("; "),
    }


def _score(
    first: Circuit, second: Circuit, *, must: bool, seed: int, prompts: int
) -> tuple[list[JointAccuracy], str]:
    from headloc.circuit.joint import check_pair, joint_accuracies, owner
    from headloc.commands.evaluate import own_model, own_objective, own_task
    from headloc.reporting.console import Console

    check_pair(first, second)
    if not must and not _at_hand(str(first.model.get("name"))):
        raise CircuitError(
            f"{first.model.get('name')!r} is not on this machine. Give accuracy=true to load it."
        )
    scored_by = owner(first, second)
    with_task = scored_by if scored_by.task else next((c for c in (first, second) if c.task), first)
    console = Console()
    with console.stage("loading"):
        task, lm = own_task(with_task), own_model(first)
    with console.stage("off-values") as progress:
        objective = own_objective(
            scored_by, lm, task, seed=seed, prompts=_MEAN_PROMPTS, progress=progress
        )
    found = joint_accuracies(
        first, second, lm, task, objective, seed=seed, prompts=prompts, stages=console.stage
    )
    notes = []
    if dict(first.objective) != dict(second.objective):
        which = "first" if scored_by is first else "second"
        notes.append(f"; the objectives differ, that of the {which} is used")
    if dict(first.task) != dict(second.task):
        which = "first" if with_task is first else "second"
        notes.append(f"; the tasks differ, that of the {which} is used")
    return found, "".join(notes)


def _at_hand(name: str) -> bool:
    """Whether a model can be loaded without the network."""
    from headloc.bundled import BUNDLED_NAME

    return name == BUNDLED_NAME or Path(name).expanduser().is_dir()


def _names(heads: Sequence[object]) -> str:
    return " ".join(str(head) for head in heads) or "-"
