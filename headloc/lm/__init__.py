"""The frozen language model with its heads in reach.

Everything here is imported on first use, so that `import headloc.lm` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headloc.lm.batch import IGNORE, EncodedPrompt, Role, TokenBatch, collate
    from headloc.lm.families import FAMILIES, Family
    from headloc.lm.frozen import FrozenLM
    from headloc.lm.layout import Site, locate_heads, verify_heads
    from headloc.lm.loading import load_lm
    from headloc.lm.mlp_tap import gate_mlps, read_mlps, tap_mlps
    from headloc.lm.prefix import PrefixCache
    from headloc.lm.source import ModelSource
    from headloc.lm.stream import add_to_stream
    from headloc.lm.taps import (
        HeadReading,
        TapCount,
        gate_heads,
        read_heads,
        replace_heads,
        tap_heads,
    )

_HOME = {
    "FAMILIES": "families",
    "IGNORE": "batch",
    "EncodedPrompt": "batch",
    "Family": "families",
    "FrozenLM": "frozen",
    "HeadReading": "taps",
    "ModelSource": "source",
    "PrefixCache": "prefix",
    "Role": "batch",
    "Site": "layout",
    "TapCount": "taps",
    "TokenBatch": "batch",
    "add_to_stream": "stream",
    "collate": "batch",
    "gate_heads": "taps",
    "gate_mlps": "mlp_tap",
    "load_lm": "loading",
    "locate_heads": "layout",
    "read_heads": "taps",
    "read_mlps": "mlp_tap",
    "replace_heads": "taps",
    "tap_heads": "taps",
    "tap_mlps": "mlp_tap",
    "verify_heads": "layout",
}

__all__ = [
    "FAMILIES",
    "IGNORE",
    "EncodedPrompt",
    "Family",
    "FrozenLM",
    "HeadReading",
    "ModelSource",
    "PrefixCache",
    "Role",
    "Site",
    "TapCount",
    "TokenBatch",
    "add_to_stream",
    "collate",
    "gate_heads",
    "gate_mlps",
    "load_lm",
    "locate_heads",
    "read_heads",
    "read_mlps",
    "replace_heads",
    "tap_heads",
    "tap_mlps",
    "verify_heads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
