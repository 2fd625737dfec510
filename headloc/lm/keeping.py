"""Where prefix caches are kept: on the device, in the host's memory, or nowhere.

    device    beside the model: the fastest
    host      in the host's memory; a pass moves the rows that it runs, layer by layer
    none      not at all: every pass runs the whole prompt
    auto      on the device where they fit, else on the host where they fit, else nowhere

The size is measured on the first rows, and said before it matters.

Shape legend: N rows.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from headloc.faults import out_of_memory
from headloc.lm.memory import free_bytes, in_gigabytes
from headloc.lm.passes import PassSizes, in_passes
from headloc.lm.prefix import PrefixCache, join

if TYPE_CHECKING:
    from headloc.lm.batch import TokenBatch

log = logging.getLogger(__name__)

_SHARE = 0.6
"""Share of the free memory that the caches of one set of prompts may take."""


class PrefixKeeper:
    """Fills prefix caches and keeps them where there is room.

    Attributes:
        place: auto, device, host or none.
    """

    def __init__(self, place: str = "auto") -> None:
        self.place = place
        self._kept_some = False

    def keep(
        self,
        batch: TokenBatch,
        fill: Callable[[slice], PrefixCache],
        sizes: PassSizes,
        *,
        most: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> PrefixCache | None:
        """Return the prefix of all rows of a batch; None where they are not to be kept.

        Args:
            batch: the prompts.
            fill: runs the prefix of some rows.
            sizes: what the device has room for.
            most: rows of a pass.
            progress: called with (rows done, rows in all).

        Raises:
            HeadlocError: when a single row does not fit.
        """
        if self.place == "none":
            return None
        kept = _Kept(hosted=self.place == "host")

        def run(part: slice) -> None:
            # Given up on the way: the rest is not run either.
            if self.place == "none":
                return
            chunk = self._filled(fill, part, kept)
            if not kept.chunks and self._wants_host(chunk, len(batch)):
                kept.hosted = True
            kept.add(chunk)

        in_passes(sizes, "prefix", len(batch), run, most=most, progress=progress)
        if self.place == "none":
            return None
        self._kept_some = True
        return kept.whole()

    def _filled(
        self, fill: Callable[[slice], PrefixCache], part: slice, kept: _Kept
    ) -> PrefixCache:
        """Run the prefix of some rows; where what is kept takes the room, it moves first."""
        try:
            return fill(part)
        except (RuntimeError, MemoryError) as error:
            full = out_of_memory(error) and self.place == "auto"
            if not full or kept.hosted or not kept.chunks:
                raise
        kept.move_to_host()
        log.warning("The prefix caches do not fit on the device: they move to the host's memory.")
        return fill(part)

    def _wants_host(self, chunk: PrefixCache, rows: int) -> bool:
        """Whether the host must keep the caches; gives them up where even that has no room."""
        if self.place != "auto":
            return False
        needed = _bytes_by_device(chunk, rows / len(chunk))
        tight = [device for device, size in needed.items() if not _fits(device, size)]
        if not tight:
            return False
        total, host = sum(needed.values()), torch.device("cpu")
        asked = f"The prefix caches of {rows} prompts take {in_gigabytes(total)}"
        if tight != [host] and (_fits(host, total) or self._kept_some):
            log.warning(
                "%s, and %s has %s free: they are kept in the host's memory and move layer by "
                "layer, which is slower (data.cache=device or none choose otherwise).",
                asked, tight[0], _free(tight[0]),
            )  # fmt: skip
            return True
        if self._kept_some:
            return False
        log.warning(
            "%s, more than there is room for (%s free): every pass runs whole prompts instead, "
            "which is slower. Fewer data.train_prompts or task.shots would fit (data.cache=none "
            "now).",
            asked, _free(tight[0]),
        )  # fmt: skip
        self.place = "none"
        return False


class _Kept:
    """The chunks of one set of prompts, and the devices that their layers come from."""

    def __init__(self, *, hosted: bool) -> None:
        self.hosted = hosted
        self.chunks: list[PrefixCache] = []
        self._homes: list[torch.device] = []

    def add(self, chunk: PrefixCache) -> None:
        from headloc.lm.hosted import homes_of, to_host

        self._homes = self._homes or homes_of(chunk)
        self.chunks.append(to_host(chunk) if self.hosted else chunk)

    def move_to_host(self) -> None:
        from headloc.lm.hosted import to_host

        self.hosted = True
        self.chunks = [to_host(chunk) for chunk in self.chunks]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def whole(self) -> PrefixCache:
        from headloc.lm.hosted import HostedPrefix

        joined = join(self.chunks)
        if not self.hosted:
            return joined
        return HostedPrefix(joined.stored(), joined.mask_NC, self._homes)


def _bytes_by_device(chunk: PrefixCache, times: float) -> dict[torch.device, float]:
    needed: Counter[torch.device] = Counter()
    for layer in chunk.stored().layers:
        for tensor in (layer.keys, layer.values):
            needed[tensor.device] += tensor.numel() * tensor.element_size()
    return {device: size * times for device, size in needed.items()}


def _fits(device: torch.device, size: float) -> bool:
    free = free_bytes(device)
    return free is None or size <= _SHARE * free


def _free(device: torch.device) -> str:
    free = free_bytes(device)
    return "an unknown amount" if free is None else in_gigabytes(free)
