"""Bind a head file of another tool to a model: the result is a circuit like any other.

Shapes: A heads in flat order, M feed-forward blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headloc.circuit.feed_forward import FeedForward
from headloc.errors import CircuitError, HeadlocError, suggest
from headloc.heads import HeadId
from headloc.interop.found import Blocks, ForeignHeads

if TYPE_CHECKING:
    from headloc.circuit import Circuit

Key = HeadId | int
"""A head, or the layer of a feed-forward block."""


@dataclass(frozen=True, slots=True)
class Use:
    """How imported heads are used, which their files do not say.

    Attributes:
        top: keep this many of the best scored, whatever the file has chosen.
        absolute: rank by the absolute value of the scores.
        off_value: what a closed head puts out: zero, mean or resample.
        positions: where heads are closed: last or all.
    """

    top: int | None = None
    absolute: bool = False
    off_value: str = "zero"
    positions: str = "last"

    def __post_init__(self) -> None:
        known = {"off_value": ("zero", "mean", "resample"), "positions": ("last", "all")}
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values:
                raise HeadlocError(f"{name}={value!r} is unknown. {suggest(value, values)}")
        if self.top is not None and self.top < 0:
            raise HeadlocError(f"top={self.top} must be 0 or more.")


def bind(
    found: ForeignHeads,
    model: Mapping[str, Any],
    use: Use | None = None,
    *,
    kind: str,
    where: str,
) -> Circuit:
    """Return the circuit of some heads of a model.

    Means are no part of a head file: with off_value=mean they are estimated by `headloc evaluate`,
    on the task that it is given.

    Args:
        found: what the file says.
        model: identity of the model, `ModelSource.to_dict()`.
        use: how the heads are used.
        kind: format of the file.
        where: its name, for messages and the record.

    Raises:
        CircuitError: when the model has other heads or blocks than the file, or nothing is chosen.
    """
    import torch

    from headloc.circuit import Circuit

    use = use or Use()
    heads = _heads_of(model)
    _check_heads(found, heads, model, where)
    layers = sorted(model.get("layer_indices", range(len(model["heads"]))))
    if found.blocks is not None and sorted(found.blocks.scores) != layers:
        raise CircuitError(
            f"{where} ranks the feed-forward blocks of other layers than {model.get('name')!r} "
            f"has ({len(layers)} layers). Give mlps=false to leave feed-forward blocks alone."
        )
    kept = _chosen(found, use, where)
    gates = _values(heads, found.gates, kept)
    objective = {
        "name": "in_place",
        "off_value": use.off_value,
        "loss": "cross_entropy",
        "positions": use.positions,
    }
    return Circuit(
        heads=tuple(sorted(head for head in kept if isinstance(head, HeadId))),
        gates=torch.tensor(gates, dtype=torch.float32),
        scores=torch.tensor(_filled(found.scores, heads) or gates, dtype=torch.float32),
        model=dict(model),
        objective=objective if found.blocks is None else {**objective, "mlps": True},
        task={},
        selection=_record(use, kind, where),
        seed=0,
        feed_forward=None if found.blocks is None else _feed_forward(found.blocks, kept),
    )


def _record(use: Use, kind: str, where: str) -> dict[str, Any]:
    """Return where the heads come from; of a path only the file's name."""
    record: dict[str, Any] = {"rule": "imported", "format": kind, "file": _file_name(where)}
    if use.top is not None:
        record |= {"top": use.top, "absolute": use.absolute}
    return record


def _file_name(where: str) -> str:
    return where.replace("\\", "/").rpartition("/")[2]


def _heads_of(model: Mapping[str, Any]) -> list[HeadId]:
    layers = model.get("layer_indices", range(len(model["heads"])))
    counts = zip(layers, model["heads"], strict=True)
    return [HeadId(layer, head) for layer, count in counts for head in range(count)]


def _check_heads(
    found: ForeignHeads, heads: Sequence[HeadId], model: Mapping[str, Any], where: str
) -> None:
    name, known = model.get("name"), frozenset(heads)
    size = f"{len(model['heads'])} layers of up to {max(model['heads'])} heads"
    if found.layers is not None and found.heads is not None:
        said = (found.layers, found.heads)
        if said != (len(model["heads"]), max(model["heads"])):
            raise CircuitError(
                f"{where} is of a model with {said[0]} layers of {said[1]} heads; {name!r} has "
                f"{size}. Give the model that the file was made on."
            )
    foreign = sorted(found.named - known)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise CircuitError(
            f"{where} names {foreign[0]}{more}, which {name!r} does not have: it has {size}, "
            "counted from 0. Give the model that the file was made on."
        )
    missing = sorted(known - found.named)
    if found.complete and missing:
        raise CircuitError(
            f"{where} says nothing about {len(missing)} heads of {name!r}, such as {missing[0]}; "
            "this format names every head. Give the model that the file was made on."
        )


def _chosen(found: ForeignHeads, use: Use, where: str) -> frozenset[Key]:
    """Return the heads and the layers of blocks that are kept."""
    scores: dict[Key, float] = dict(found.scores.items())
    kept: set[Key] = set(found.kept or ())
    ranked_only = found.kept is None
    if found.blocks is not None:
        scores.update(found.blocks.scores.items())
        kept |= found.blocks.kept or frozenset()
    if use.top is None:
        if ranked_only or (found.scores and not kept):
            raise CircuitError(
                f"{where} ranks heads without choosing any. Give top=N to take the N best."
            )
        return frozenset(kept)
    if use.top > len(scores):
        raise CircuitError(
            f"top={use.top}, but {where} has scores for {len(scores)}. Give a smaller number, or "
            "leave top out to take the file's own choice."
        )
    worth: Callable[[float], float] = abs if use.absolute else float
    # Of equal scores the first in the model's order.
    ranked = sorted(scores, key=lambda key: (-worth(scores[key]), _order(key)))
    return frozenset(ranked[: use.top])


def _order(key: Key) -> tuple[int, int, int]:
    return (0, key.layer, key.head) if isinstance(key, HeadId) else (1, key, 0)


def _filled(scores: Mapping[HeadId, float], heads: Sequence[HeadId]) -> list[float]:
    """Return a score for every head; those without stand below all others, at 0 or lower."""
    if not scores:
        return []
    lowest = min(0.0, *scores.values())
    return [scores.get(head, lowest) for head in heads]


def _values(
    keys: Sequence[Key], known: Mapping[Any, float] | None, kept: frozenset[Key]
) -> list[float]:
    """Return the known gates, else 1 for what is kept and 0 for the rest."""
    return [float(key in kept) if known is None else known[key] for key in keys]


def _feed_forward(blocks: Blocks, kept: frozenset[Key]) -> FeedForward:
    import torch

    layers = sorted(blocks.scores)
    return FeedForward(
        kept=tuple(layer for layer in layers if layer in kept),
        layers=tuple(layers),
        gates=torch.tensor(_values(layers, blocks.gates, kept), dtype=torch.float32),
        scores=torch.tensor([blocks.scores[layer] for layer in layers], dtype=torch.float32),
    )
