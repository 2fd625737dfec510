"""What a benchmark found: ratios with their inputs, tables, and the circumstances of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from headloc.bench.timing import Ratio, Timing

Side = Literal["at least", "at most"]


@dataclass(frozen=True, slots=True)
class Bar:
    """What a ratio is expected to reach; `side` says in which direction."""

    side: Side
    value: float

    def reached(self, measured: float) -> bool:
        """Whether a figure is on the right side."""
        return measured >= self.value if self.side == "at least" else measured <= self.value

    def __str__(self) -> str:
        return f"{self.side} {self.value:.3g}"


@dataclass(frozen=True, slots=True)
class Measured:
    """One ratio and everything behind it.

    Attributes:
        name: its key without the leading `ratio/`.
        value: the ratio.
        says: what was divided by what, in words.
        low, high: 95 % interval over turns, or None for a ratio of memory.
        bar: what is expected of it, where something is.
        inputs: timings, bytes, losses and sizes, json-able.
    """

    name: str
    value: float
    says: str
    low: float | None = None
    high: float | None = None
    bar: Bar | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_times(
        cls,
        name: str,
        found: Ratio,
        says: str,
        timings: Mapping[str, Timing],
        bar: Bar | None = None,
        **inputs: Any,
    ) -> Measured:
        """Return a ratio of times with the timings of both arms among its inputs."""
        arms = {arm: timing.to_dict() for arm, timing in timings.items()}
        by_turn = {"smallest_of_turns": found.smallest, "largest_of_turns": found.largest}
        more = {"arms": arms, "turns": found.turns, **by_turn, **inputs}
        if math.isfinite(found.processor):
            more["processor_time_ratio"] = found.processor
        return cls(name, found.value, says, found.low, found.high, bar, more)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, json-able."""
        interval = {} if self.low is None else {"low": self.low, "high": self.high}
        bar = {} if self.bar is None else {
            "bar": asdict(self.bar), "reached": self.bar.reached(self.value)
        }  # fmt: skip
        return {"value": self.value, "says": self.says, **interval, **bar, **self.inputs}


@dataclass(frozen=True, slots=True)
class Point:
    """Cost of a step at one value of one axis.

    Attributes:
        axis: heads, layers, shots, prompts or bank.
        value: where on the axis.
        timing: of a training step.
        memory: bytes of the stored prefixes and the peak of a step, together.
        heads: gated heads of the model.
        columns: prompt tokens.
    """

    axis: str
    value: int
    timing: Timing
    memory: int
    heads: int
    columns: int


@dataclass(slots=True)
class BenchResult:
    """Everything of one run.

    Attributes:
        circumstances: model, sizes, device, threads, dtype, versions, load of the machine.
        ratios: what was compared.
        scaling: cost along the axes.
        localization: seconds by stage of whole localizations, by name.
    """

    circumstances: dict[str, Any]
    ratios: list[Measured] = field(default_factory=list)
    scaling: list[Point] = field(default_factory=list)
    localization: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of bench.json."""
        # A name with a slash is a part or a variant of the ratio that it begins with.
        flat = {f"ratio/{m.name}": m.value for m in self.ratios if "/" not in m.name}
        further = {f"ratio/{m.name}": m.value for m in self.ratios if "/" in m.name}
        return {
            **flat,
            "further": further,
            "inputs": {f"ratio/{m.name}": m.to_dict() for m in self.ratios},
            "scaling": [dict(zip(SCALING_COLUMNS, row, strict=True)) for row in self.rows()],
            "localization": self.localization,
            "run": self.circumstances,
        }

    def rows(self) -> list[list[Any]]:
        """Return the cells of every scaling point in the order of `SCALING_COLUMNS`."""
        first: dict[str, Point] = {}
        for point in self.scaling:
            first.setdefault(point.axis, point)
        return [
            [
                p.axis,
                p.value,
                p.heads,
                p.columns,
                p.timing.median,
                min(p.timing.wall),
                max(p.timing.wall),
                p.timing.median / first[p.axis].timing.median,
                p.memory,
                p.memory / first[p.axis].memory,
            ]
            for p in self.scaling
        ]


SCALING_COLUMNS = (
    "axis", "value", "heads", "prompt_tokens", "seconds", "seconds_smallest", "seconds_largest",
    "time_to_first", "bytes", "memory_to_first",
)  # fmt: skip
