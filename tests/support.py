"""What headloc can do with every family, asked of the tiny models: the README's table of support.

    python -m tests.support           prints the table
    python -m tests.support --write   puts it into the README

A cell is an attempt: what is said to work has run on the family's tiny model and passed its own
checks against the model's forward; what is not has been refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from headloc.analysis.candidates import mlp_candidates
from headloc.analysis.reading import read_heads_of
from headloc.analysis.stream_reading import read_parts
from headloc.analysis.towers import towers_of
from headloc.analysis.unembedding import readout_of
from headloc.analysis.value_maps import value_maps
from headloc.doctor.heads import check_ablation, check_identity
from headloc.errors import HeadlocError
from headloc.lm.branches import supports_branches
from headloc.lm.families import FAMILIES as KNOWN
from headloc.lm.frozen import FrozenLM
from tests.tiny import FAMILIES, SPECS, tiny_batch, tiny_lm

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- support: python -m tests.support --write -->", "<!-- end of support -->"


@dataclass(frozen=True)
class Feature:
    """A column of the table.

    Attributes:
        name: its heading.
        works: tries it; False or a HeadlocError where it does not work.
    """

    name: str
    works: Callable[[FrozenLM], bool]


def _gates(lm: FrozenLM) -> bool:
    return check_identity(lm).status == check_ablation(lm).status == "ok"


def _mlps(lm: FrozenLM) -> bool:
    return len(lm.mlps) == len(lm.layout.layers)


def _sources(lm: FrozenLM) -> bool:
    found = read_heads_of(lm, tiny_batch(), list(lm.layout), inputs=True)
    return set(value_maps(lm, list(found))) == set(found)


def _towers(lm: FrozenLM) -> bool:
    return bool(towers_of(lm, range(len(lm.layout.layers))))


def _attribution(lm: FrozenLM) -> bool:
    batch = tiny_batch()
    reading = read_parts(lm, batch)
    readout_of(lm, reading, batch.target_BJ[:, 0])
    return True


def _neurons(lm: FrozenLM) -> bool:
    banks = mlp_candidates(lm, read_parts(lm, tiny_batch()))
    return len(banks) == len(lm.layout.layers)


FEATURES = (
    Feature("gates, ablation", _gates),
    Feature("prefix cache", lambda lm: lm.supports_prefix_cache),
    Feature("branches", supports_branches),
    Feature("feed-forward gates", _mlps),
    Feature("source tokens", _sources),
    Feature("towers", _towers),
    Feature("attribution", _attribution),
    Feature("neurons", _neurons),
)


@cache
def support(family: str) -> tuple[bool, ...]:
    """Return which features work on a family's tiny model."""
    lm = tiny_lm(family)
    return tuple(_tried(feature, lm) for feature in FEATURES)


@torch.no_grad()
def _tried(feature: Feature, lm: FrozenLM) -> bool:
    try:
        return feature.works(lm)
    except HeadlocError:
        return False


def table() -> str:
    """Return the table in Markdown: families that can do the same share a line."""
    lines: dict[tuple[bool, ...], list[str]] = {}
    for family in FAMILIES:
        lines.setdefault(support(family), []).append(_name(family))
    ranked = sorted(lines.items(), key=lambda line: (-sum(line[0]), line[1]))
    heading = ("families", *(feature.name for feature in FEATURES))
    rows = [
        (", ".join(_once(names)), *("yes" if works else "no" for works in found))
        for found, names in ranked
    ]
    tested = {SPECS[family].model_type.removesuffix("_text") for family in FAMILIES}
    untested = sorted({name.removesuffix("_text") for name in KNOWN} - tested)
    rows.append((", ".join(untested), *("probed" for _ in FEATURES)))
    return "\n".join([_row(heading), _row("---" for _ in heading), *(_row(row) for row in rows)])


def _name(family: str) -> str:
    """Return the model type, with what the tiny model varies in brackets."""
    kind = SPECS[family].model_type.removesuffix("_text")
    rest = family.removeprefix(SPECS[family].model_type).removeprefix(kind).strip("_")
    return kind if not rest or rest == "text" else f"{kind} ({rest.replace('_', ' ')})"


def _once(names: Iterable[str]) -> list[str]:
    """Leave variants out that stand beside their plain form."""
    names = sorted(set(names))
    return [name for name in names if name.partition(" ")[0] == name
            or name.partition(" ")[0] not in names]  # fmt: skip


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, or write it into the README."""
    if "--write" not in sys.argv:
        print(table())
        return
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
