"""Named random streams: independent of each other and of the order in which they are asked for.

A run has one seed and many uses of chance: "means" (estimating off-values), "train", "selection",
"test", "controls" and whatever a command adds.  Each use takes its own stream by name, so that
adding one never moves another, and prompts drawn for scoring are not those that means were
estimated on.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from headloc.errors import HeadlocError

if TYPE_CHECKING:
    import torch

_HASH_BYTES = 16


def stable_hash(*parts: str) -> int:
    """A 128-bit hash of some strings, the same in every process and on every machine."""
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        # The length in front keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def stream(seed: int, *names: str) -> np.random.Generator:
    """The random stream that `names` has under `seed`.

    Args:
        seed: the run's seed, zero or more.
        names: what the stream is for, from coarse to fine, such as `"test", "held_out"`.

    Raises:
        HeadlocError: when the seed is not an integer of zero or more.
    """
    return np.random.default_rng(_sequence(seed, names))


def torch_generator(seed: int, *names: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The same as a generator of torch, on `device`.

    Raises:
        HeadlocError: when the seed is not an integer of zero or more.
    """
    import torch

    state = int(_sequence(seed, names).generate_state(1, np.uint64)[0])
    return torch.Generator(device=device).manual_seed(state >> 1)


def _sequence(seed: int, names: tuple[str, ...]) -> np.random.SeedSequence:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise HeadlocError(f"seed={seed!r} is not a seed. Give an integer of zero or more.")
    key = stable_hash(*names)
    words = tuple((key >> shift) & 0xFFFFFFFF for shift in range(0, 8 * _HASH_BYTES, 32))
    return np.random.SeedSequence(int(seed), spawn_key=words)
