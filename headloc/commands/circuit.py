"""`headloc circuit show|diff|export`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from headloc.circuit import Circuit
from headloc.circuit.diff import compare, head_frequency, mean_jaccard
from headloc.circuit.exports import EXPORTS, export_text
from headloc.errors import HeadlocError, suggest
from headloc.files import write_text


def show(arguments: Sequence[str]) -> None:
    """Print a circuit."""
    paths, options = _split(arguments, known=("circuit",))
    paths += [options["circuit"]] if "circuit" in options else []
    if len(paths) != 1:
        raise HeadlocError("Give one circuit folder: headloc circuit show DIR.")
    from headloc.reporting.console import Console

    Console().circuit(Circuit.load(paths[0]))


def diff(arguments: Sequence[str]) -> None:
    """Print how circuits compare, pair by pair and together."""
    paths, _ = _split(arguments, known=())
    if len(paths) < 2:
        raise HeadlocError("Give two circuit folders or more: headloc circuit diff DIR DIR.")
    circuits = [Circuit.load(path) for path in paths]
    for (i, first), (j, second) in combinations(enumerate(circuits), 2):
        overlap = compare(first, second)
        print(
            f"{paths[i]}  ({len(first.heads)} heads)  and  {paths[j]}  ({len(second.heads)} heads)"
        )
        print(f"  shared            {_names(overlap.shared)}")
        print(f"  first only        {_names(overlap.only_first)}")
        print(f"  second only       {_names(overlap.only_second)}")
        print(f"  Jaccard index     {overlap.jaccard:.3f}")
        print(f"  rank correlation  {overlap.rank_correlation:.3f}")
    if len(circuits) > 2:
        print(f"all {len(circuits)} circuits: mean Jaccard index {mean_jaccard(circuits):.3f}")
        for head, share in head_frequency(circuits).items():
            print(f"  {head!s:<8} in {share:.0%}")


def export(arguments: Sequence[str]) -> None:
    """Write a circuit in another format."""
    paths, options = _split(arguments, known=("circuit", "format", "output"))
    paths += [options["circuit"]] if "circuit" in options else []
    if len(paths) != 1 or "format" not in options or "output" not in options:
        raise HeadlocError(
            "Give the circuit, a format and a file: headloc circuit export DIR "
            f"format={'|'.join(EXPORTS)} output=FILE."
        )
    text = export_text(Circuit.load(paths[0]), options["format"])
    write_text(Path(options["output"]), text)
    print(options["output"])


def _split(arguments: Sequence[str], known: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    paths: list[str] = []
    options: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or Path(argument).exists():
            paths.append(argument)
        elif key in known:
            options[key] = value
        else:
            raise HeadlocError(f"There is no option {key!r} here. {suggest(key, known or ['DIR'])}")
    return paths, options


def _names(heads: Sequence[object]) -> str:
    return " ".join(str(head) for head in heads) or "-"
