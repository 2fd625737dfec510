"""Named random streams."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from headloc.errors import HeadlocError
from headloc.randomness import stable_hash, stream, torch_generator


def numbers(*names: str, seed: int = 0) -> list[int]:
    return [int(value) for value in stream(seed, *names).integers(2**60, size=4)]


def test_streams_are_reproducible_and_differ() -> None:
    names = [("means",), ("train",), ("test",), ("test", "held_out"), ("testheld_out",), ()]
    drawn = [numbers(*name) for name in names]
    assert drawn == [numbers(*name) for name in names]
    assert len({tuple(values) for values in drawn}) == len(names)
    assert numbers("train", seed=1) != numbers("train", seed=0)


def test_streams_are_the_same_in_another_process() -> None:
    code = "from headloc.randomness import stream; print(stream(3, 'test').integers(2**60))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(result.stdout) == int(stream(3, "test").integers(2**60))


def test_stable_hash_keeps_parts_apart() -> None:
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
    assert 0 <= stable_hash() < 2**128
    assert stable_hash("train") == stable_hash("train")


def test_torch_generator_follows_the_names() -> None:
    def drawn(*names: str) -> list[float]:
        return torch.rand(3, generator=torch_generator(0, *names)).tolist()

    assert drawn("train") == drawn("train")
    assert drawn("train") != drawn("test")


@pytest.mark.parametrize("seed", [-1, 0.5, "0", True, None])
def test_wrong_seed(seed: object) -> None:
    with pytest.raises(HeadlocError, match="integer of zero or more"):
        stream(seed, "train")  # type: ignore[arg-type]
