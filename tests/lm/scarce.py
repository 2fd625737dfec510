"""A model on a device whose memory holds only so many rows at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from headloc.lm import FrozenLM


@contextmanager
def room_for(lm: FrozenLM, rows: int, columns: int = 10**9) -> Iterator[list[int]]:
    """Let passes of more rows, or of more columns, run out of memory; yields the rows that ran."""
    ran: list[int] = []

    def check(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        size = kwargs["input_ids"].shape
        if size[0] > rows or size[1] > columns:
            raise torch.OutOfMemoryError(f"{tuple(size)} is too much")
        ran.append(size[0])

    handle = lm.model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield ran
    finally:
        handle.remove()
