"""What a run draws at random, as digests: prompts, the order of training rows, random head sets.

    python -m tests.trust.drawn RECORD.json [--disturb N] COMMAND ...

runs a command of headloc in this process and writes the digests; `--disturb` seeds the global
generators of torch, numpy and Python with something first.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from headloc.evaluation import verdict
from headloc.localizer.data import EpochOrder
from headloc.randomness import stream
from headloc.tasks import Example, TaskFamily

Drawn = dict[str, str]
"""Digest by what was drawn: `prompts/NAMES`, `order/SEED/EPOCH`, `controls/CONDITION/NUMBER`."""

STREAMS = (("means",), ("train", "train"), ("selection", "train"), ("test", "train"),
           ("test", "held_out"))  # fmt: skip


def digest(value: Any) -> str:
    """A hash of what `repr` tells."""
    return hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@contextmanager
def recording() -> Iterator[Drawn]:
    """Record what is drawn in the block; nothing that is drawn changes by it."""
    found: Drawn = {}
    names = {stream(0, *one).bit_generator.seed_seq.spawn_key: "/".join(one) for one in STREAMS}
    draw, iterate, plan = TaskFamily.draw, EpochOrder.__iter__, verdict.plan_conditions

    def drawn(self: TaskFamily, n: int, rng: np.random.Generator, **options: Any) -> list[Example]:
        key = rng.bit_generator.seed_seq.spawn_key  # type: ignore[attr-defined]
        examples = draw(self, n, rng, **options)
        found[f"prompts/{names.get(key, 'other')}"] = digest(examples)
        return examples

    def iterated(self: EpochOrder) -> Iterator[list[int]]:
        batches = list(iterate(self))
        if self.shuffle:
            found[f"order/{self.seed}/{self.epoch}"] = digest(batches)
        return iter(batches)

    def planned(*arguments: Any, **options: Any) -> dict[str, list[Tensor | None]]:
        masks = plan(*arguments, **options)
        for condition in verdict.RANDOM:
            for number, mask_A in enumerate(masks.get(condition, [])):
                assert mask_A is not None
                found[f"controls/{condition}/{number}"] = digest(mask_A.tolist())
        return masks

    with ExitStack() as stack:
        stack.enter_context(patch.object(TaskFamily, "draw", drawn))
        stack.enter_context(patch.object(EpochOrder, "__iter__", iterated))
        stack.enter_context(patch.object(verdict, "plan_conditions", planned))
        yield found


def disturb(number: int) -> None:
    """Seed every global generator with something."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def global_state() -> list[Any]:
    """The state of every global generator and switch that a run could change."""
    return [
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        torch.get_rng_state().tolist(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        np.geterr(),
    ]


def main(arguments: Sequence[str]) -> int:
    """Run a command and write what it drew."""
    record, *command = arguments
    if command[0] == "--disturb":
        disturb(int(command[1]))
        command = command[2:]
    sys.argv = ["headloc"]
    from headloc.cli import main as headloc

    with recording() as found:
        status = headloc(command)
    Path(record).write_text(json.dumps(found), encoding="utf-8")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
