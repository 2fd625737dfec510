"""Head files of other tools, by format.

heads             [[layer, head], ...], or {"group": [[layer, head], ...]} as DCM writes them
function_vectors  [[layer, head, score], ...], as `compute_function_vector` lists its top heads;
                  or *_indirect_effect.pt, a tensor of trials by layers by heads
csv               headloc's own table: layer, head, gate, score, selected
mib               MIB / EAP-IG graph JSON with nodes a{layer}.h{head} and m{layer}
headkv            {"layer-head": [score of every trial]}, of retrieval heads and HeadKV
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headloc.errors import CircuitError, HeadlocError, suggest
from headloc.heads import HeadId
from headloc.interop.found import ForeignHeads
from headloc.interop.graph import read_graph
from headloc.interop.table import read_table
from headloc.interop.untrusted import Checks, file_text, json_of


@dataclass(frozen=True, slots=True)
class Options:
    """What a file may leave open.

    Attributes:
        group: which group of a file with several head lists.
        mlps: whether feed-forward blocks that a graph ranks are gated too.
    """

    group: str | None = None
    mlps: bool = True


def read_heads(path: Path, kind: str, options: Options | None = None) -> ForeignHeads:
    """Read a head file.

    Raises:
        HeadlocError: for an unknown format.
        CircuitError: for a file that is not of this format.
    """
    if kind not in FORMATS:
        raise HeadlocError(f"format={kind!r} is unknown. {suggest(kind, FORMATS)}")
    return FORMATS[kind](path, options or Options())


def _read_list(path: Path, options: Options) -> ForeignHeads:
    data = json_of(file_text(path), str(path))
    if isinstance(data, dict):
        data = _group(data, options.group, path)
    elif options.group is not None:
        raise CircuitError(f"{path} has no groups, but group={options.group!r} asks for one.")
    checks = Checks(str(path), "a list of [layer, head] pairs, counted from 0")
    kept: dict[HeadId, None] = {}

    def take(pair: Any) -> None:
        if not isinstance(pair, list) or len(pair) != 2:
            raise checks.refuse(f"{pair!r:.60} is not a [layer, head] pair")
        checks.add(kept, checks.head(*pair), None)

    checks.each(data, "the content", take)
    return ForeignHeads(frozenset(kept), {})


def _group(data: dict[str, Any], group: str | None, path: Path) -> Any:
    if group is None and len(data) == 1:
        return next(iter(data.values()))
    if group not in data:
        asked = "none was named" if group is None else f"not {group!r}"
        names = ", ".join(sorted(data)[:20]) or "none"
        raise CircuitError(
            f"{path} holds groups of heads, {asked}. Give group=NAME, one of: {names}."
        )
    return data[group]


def _read_function_vectors(path: Path, options: Options) -> ForeignHeads:
    if path.suffix == ".pt":
        from headloc.interop.effects import read_effects

        return read_effects(path)
    checks = Checks(str(path), "a list of [layer, head, score], counted from 0")
    scores: dict[HeadId, float] = {}

    def take(item: Any) -> None:
        if not isinstance(item, list) or len(item) != 3:
            raise checks.refuse(f"{item!r:.60} is not a [layer, head, score]")
        checks.add(scores, checks.head(*item[:2]), checks.number(item[2], "a score"))

    checks.each(json_of(file_text(path), str(path)), "the content", take)
    return ForeignHeads(frozenset(scores), scores)


def _read_headkv(path: Path, options: Options) -> ForeignHeads:
    checks = Checks(str(path), '{"layer-head": [score of every trial], ...}')
    data = json_of(file_text(path), str(path))
    if not isinstance(data, dict):
        raise checks.refuse("the content is not an object")
    scores: dict[HeadId, float] = {}
    for key, values in data.items():
        parts = key.split("-")
        if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) < 7 for p in parts):
            raise checks.refuse(f"the key {key[:40]!r} is not layer-head")
        if not isinstance(values, list) or not values:
            raise checks.refuse(f"{key!r} has no list of scores")
        trials = [checks.number(value, f"a score of {key!r}") for value in values]
        checks.add(scores, checks.head(*map(int, parts)), sum(trials) / len(trials))
    return ForeignHeads(None, scores, complete=True)


FORMATS: dict[str, Callable[[Path, Options], ForeignHeads]] = {
    "heads": _read_list,
    "function_vectors": _read_function_vectors,
    "csv": read_table,
    "mib": read_graph,
    "headkv": _read_headkv,
}
