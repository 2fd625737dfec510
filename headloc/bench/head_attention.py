"""Attention of chosen heads at the last token, as the analyses read it, against all maps.

Both give the same attention, which is checked before they are timed.  The memory of reading is
measured on N prompts and on four times as many: it should not grow.

Shapes: N prompts, B rows, C columns of a prompt, H chosen heads of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from headloc.bench.comparisons import Clock
from headloc.bench.memory import peak_bytes
from headloc.bench.result import Bar, Measured
from headloc.bench.steps import Material
from headloc.bench.timing import ratio
from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.heads import HeadId
from headloc.lm.batch import TokenBatch
from headloc.lm.frozen import FrozenLM
from headloc.objectives.prompts import Progress

SHARE = 4
"""One head in so many is read."""

MORE = 4
"""Times as many prompts for the growth of memory."""

_TOLERANCE = 1e-3
_TOLERANCE_HALF = 5e-2


@torch.no_grad()
def head_attention(made: Material, clock: Clock, progress: Progress) -> list[Measured]:
    """Compare reading some heads with making the maps of all heads.

    Args:
        made: the model with its prompts.
        clock: how to time.
        progress: called with (milliseconds passed, milliseconds in all).
    """
    lm, batch, size = made.lm, made.prompts.batch, made.batch_size
    chosen = list(lm.layout)[::SHARE]
    try:
        _check(lm, batch.rows(slice(0, size)), chosen)
    except UnsupportedModelError as error:
        clock.note(f"  skipped: {error}")
        return []
    many = batch.rows(torch.arange(MORE * len(batch), device=batch.ids_BT.device) % len(batch))
    arms = {
        "chosen_heads": lambda: _read(lm, many, chosen, size),
        "all_maps": lambda: _read_all(lm, many, chosen, size),
    }
    peaks = {
        "chosen_heads": peak_bytes(lambda: _read(lm, batch, chosen, size), lm.device),
        "chosen_heads_more_prompts": peak_bytes(arms["chosen_heads"], lm.device),
        "all_maps": peak_bytes(arms["all_maps"], lm.device),
    }
    timings = clock.time(made, arms, progress)
    shared: dict[str, Any] = {
        "heads_read": len(chosen), "heads": lm.layout.total, "prompts": len(many),
        "prompts_of_a_chunk": size, "prompt_tokens": batch.prompt_columns, "peak_bytes": peaks,
    }  # fmt: skip
    seconds = ratio(timings["all_maps"], timings["chosen_heads"], clock.settings.seed)
    return [
        Measured.of_times(
            "head_attention",
            seconds,
            f"attention of {len(chosen)} heads of {len(many)} prompts: maps of all heads over "
            "reading the chosen ones",
            timings,
            **shared,
        ),
        Measured(
            "head_attention_growth",
            peaks["chosen_heads_more_prompts"] / peaks["chosen_heads"],
            f"peak memory of reading {len(many)} prompts over that of {len(batch)}",
            bar=Bar("at most", 1.1),
            inputs=shared,
        ),
    ]


def _chunks(batch: TokenBatch, size: int) -> Iterator[TokenBatch]:
    for start in range(0, len(batch), size):
        yield batch.rows(slice(start, min(start + size, len(batch))))


def _read(lm: FrozenLM, batch: TokenBatch, chosen: list[HeadId], size: int) -> float:
    """Read the chosen heads chunk by chunk, keeping one figure."""
    from headloc.analysis.reading import read_chunks

    total = 0.0
    for _, found in read_chunks(lm, batch, chosen, rows_per_pass=size):
        total += sum(float(one.attention_BHT.square().sum()) for one in found.values())
    return total


def _read_all(lm: FrozenLM, batch: TokenBatch, chosen: list[HeadId], size: int) -> float:
    """The same from the attention maps of all heads."""
    total = 0.0
    for chunk in _chunks(batch, size):
        total += sum(float(one.square().sum()) for one in _maps(lm, chunk, chosen).values())
    return total


def _maps(lm: FrozenLM, batch: TokenBatch, chosen: list[HeadId]) -> dict[int, Tensor]:
    """Return attention_BHC of the chosen heads by layer, from maps of all heads."""
    from headloc.analysis.reading import prompt_only

    batch = prompt_only(batch).to(lm.device)
    options = {"position_ids": batch.position_ids_BT} if lm.takes_positions else {}
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation("eager")
    try:
        maps = lm.model(
            input_ids=batch.ids_BT, attention_mask=batch.mask_BT, output_attentions=True,
            use_cache=False, **options,
        ).attentions  # fmt: skip
    finally:
        lm.model.set_attn_implementation(before)
    by_layer: dict[int, list[int]] = {}
    for head in chosen:
        by_layer.setdefault(head.layer, []).append(head.head)
    return {layer: maps[layer][:, heads, -1] for layer, heads in by_layer.items()}


def _check(lm: FrozenLM, batch: TokenBatch, chosen: list[HeadId]) -> None:
    """Make sure that both ways read the same.

    Raises:
        UnsupportedModelError: when the heads cannot be read.
        HeadlocError: when they differ by more than rounding.
    """
    from headloc.analysis.reading import read_heads_of

    maps = _maps(lm, batch, chosen)
    tolerance = _TOLERANCE_HALF if lm.dtype in (torch.bfloat16, torch.float16) else _TOLERANCE
    for position, found in read_heads_of(lm, batch, chosen).items():
        layer = lm.layout.layers[position].layer
        gap = float((found.attention_BHT - maps[layer]).abs().max())
        if not gap <= tolerance:
            raise HeadlocError(
                f"Attention read through values and from maps differs by {gap:.2g} in layer "
                f"{layer}, so their times cannot be compared. This is a fault of headloc: please "
                "report the model and the command."
            )
