"""A measured figure with its sample size and interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

_Z95 = 1.959964


@dataclass(frozen=True)
class Figure:
    """A value measured on ``samples`` prompts, with a 95 % interval where it is a share."""

    value: float
    samples: int
    low: float | None = None
    high: float | None = None

    @classmethod
    def share(cls, right: int, samples: int) -> Figure:
        """A share of successes with its Wilson interval."""
        p, z2 = right / samples, _Z95**2
        centre = (p + z2 / (2 * samples)) / (1 + z2 / samples)
        half = _Z95 / (1 + z2 / samples) * math.sqrt(p * (1 - p) / samples + z2 / (4 * samples**2))
        return cls(p, samples, max(0.0, centre - half), min(1.0, centre + half))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:g}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
