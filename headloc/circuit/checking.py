"""Check circuit.json field by field before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from headloc.errors import CircuitError

SCHEMA_VERSION = 2
"""The newest form that is read; version 2 is version 1 with feed-forward blocks."""

_REQUIRED = {"schema_version", "heads", "model", "objective", "task", "seed"}


def checked(data: Any, path: Path) -> dict[str, Any]:
    """Check the shape of circuit.json, field by field.

    Raises:
        CircuitError: naming the first field that is wrong.
    """
    where = path / "circuit.json"

    def refuse(what: str) -> CircuitError:
        return CircuitError(f"{where} is not a headloc circuit: {what}.")

    if not isinstance(data, dict):
        raise refuse("it is not a JSON object")
    missing = sorted(_REQUIRED - data.keys())
    if missing:
        raise refuse(f"it lacks {', '.join(missing)}")
    version = data["schema_version"]
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise CircuitError(
            f"{where} has schema_version {version!r}; this headloc reads up to {SCHEMA_VERSION}. "
            "Install a newer headloc."
        )
    for key in ("model", "objective", "task", "selection", "metrics"):
        if not isinstance(data.get(key, {}), dict):
            raise refuse(f"{key!r} is not an object")
    for name, value in data.get("metrics", {}).items():
        if not _is_finite(value):
            raise refuse(f"metrics.{name[:80]} is not a finite number")
    counts = data["model"].get("heads")
    if not _are_counts(counts):
        raise refuse("model.heads is not a list of head counts per layer")
    layers = data["model"].get("layer_indices", list(range(len(counts))))
    if not _are_counts(layers, smallest=0) or len(layers) != len(counts):
        raise refuse(
            "model.layer_indices is not a list of one layer index per entry of model.heads"
        )
    sizes = dict(zip(layers, counts, strict=True))
    if not isinstance(data["heads"], list):
        raise refuse("'heads' is not a list of [layer, head] pairs")
    seen = set()
    for pair in data["heads"]:
        if not _are_counts(pair, smallest=0) or len(pair) != 2:
            raise refuse(f"{pair!r} in 'heads' is not a [layer, head] pair")
        if not pair[1] < sizes.get(pair[0], 0):
            raise refuse(f"the model it names has no head L{pair[0]}H{pair[1]}")
        if tuple(pair) in seen:
            raise refuse(f"head L{pair[0]}H{pair[1]} stands in it twice")
        seen.add(tuple(pair))
    if not isinstance(data["seed"], int):
        raise refuse("'seed' is not an integer")
    if "mlps" in data:
        _check_mlps(data, refuse)
    return data


def _check_mlps(data: dict[str, Any], refuse: Callable[[str], CircuitError]) -> None:
    for key in ("mlps", "mlp_layers"):
        value = data.get(key)
        if not _are_counts(value, smallest=0) or sorted(set(value or ())) != value:
            raise refuse(f"{key!r} is not a rising list of layers")
    foreign = sorted(set(data["mlps"]) - set(data["mlp_layers"]))
    if foreign:
        raise refuse(f"'mlps' keeps layer {foreign[0]}, which 'mlp_layers' does not list")


def _is_finite(value: Any) -> bool:
    # Compared first: float() of a huge integer overflows.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _are_counts(value: Any, smallest: int = 1) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and smallest <= item <= 10**6
        for item in value
    )
