"""MIB / EAP-IG graph JSON, read at its nodes.

    {"cfg": {"n_layers": 2, "n_heads": 4, ...},
     "nodes": {"a0.h1": {"in_graph": true, "score": 0.3}, "m0": {"in_graph": true}, ...},
     "edges": {...}}

A node without a score is always kept by the tools of this format, so feed-forward blocks count as
gated only where they are scored.  Edges are not read: headloc's unit is the head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.heads import HeadId
from headloc.interop.found import Blocks, ForeignHeads
from headloc.interop.untrusted import Checks, file_text, json_of

if TYPE_CHECKING:
    from headloc.interop.reading import Options

_HEAD = re.compile(r"a([0-9]{1,6})\.h([0-9]{1,6})")
_BLOCK = re.compile(r"m([0-9]{1,6})")
_FORM = (
    '{"cfg": {"n_layers", "n_heads"}, "nodes": {"a0.h1": {"in_graph": true, "score": 0.3}, '
    '"m0": {...}, "input": {...}, "logits": {...}}, "edges": {...}}'
)


def read_graph(path: Path, options: Options) -> ForeignHeads:
    """Read the heads of a graph, and the feed-forward blocks where they are scored.

    Raises:
        CircuitError: for a file that is not such a graph.
    """
    checks = Checks(str(path), _FORM)
    data = json_of(file_text(path), str(path))
    config, nodes = (_object(data, key, checks) for key in ("cfg", "nodes"))
    heads: dict[HeadId, Mapping[str, Any]] = {}
    blocks: dict[int, Mapping[str, Any]] = {}
    for name, node in nodes.items():
        if not isinstance(node, dict):
            raise checks.refuse(f"the node {name[:40]!r} is not an object")
        if match := _HEAD.fullmatch(name):
            checks.add(heads, HeadId(int(match[1]), int(match[2])), node)
        elif match := _BLOCK.fullmatch(name):
            checks.add(blocks, int(match[1]), node)
        elif name not in ("input", "logits"):
            raise checks.refuse(f"there is no node {name[:40]!r} in such a graph")
    scores = _scores(heads, checks)
    return ForeignHeads(
        kept=frozenset(_kept(heads, checks)),
        scores=scores,
        complete=True,
        blocks=_blocks(blocks, checks) if options.mlps else None,
        layers=checks.index(config.get("n_layers"), "cfg.n_layers"),
        heads=checks.index(config.get("n_heads"), "cfg.n_heads"),
    )


def _object(data: Any, key: str, checks: Checks) -> dict[str, Any]:
    value = data.get(key) if isinstance(data, dict) else None
    if not isinstance(value, dict):
        raise checks.refuse(f"it has no object {key!r}")
    return value


def _kept(nodes: Mapping[Any, Mapping[str, Any]], checks: Checks) -> list[Any]:
    return [
        key
        for key, node in nodes.items()
        if checks.truth(node.get("in_graph"), f"in_graph of {key}")
    ]


def _scores(nodes: Mapping[Any, Mapping[str, Any]], checks: Checks) -> dict[Any, float]:
    """Return the scores of nodes: of all, or of none."""
    scored = {
        key: checks.number(node["score"], f"the score of {key}")
        for key, node in nodes.items()
        if "score" in node
    }
    if scored and len(scored) < len(nodes):
        missing = next(key for key in nodes if key not in scored)
        raise checks.refuse(f"{missing} has no score, but others have")
    return scored


def _blocks(nodes: Mapping[int, Mapping[str, Any]], checks: Checks) -> Blocks | None:
    scores = _scores({f"m{layer}": node for layer, node in nodes.items()}, checks)
    if not scores:
        return None
    return Blocks({int(name[1:]): score for name, score in scores.items()},
                  frozenset(_kept(nodes, checks)))  # fmt: skip
