"""What the name of a cached mean depends on, and an estimation that was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headloc.lm.frozen import FrozenLM
from headloc.objectives.mean_cache import cache_name
from headloc.objectives.task_means import estimate_task_means
from headloc.tasks import AddK
from tests.objectives.by_hand import add_k, digit_lm

NAMES = ["add_1", "add_9", "add_30"]


def named(lm: FrozenLM | None = None, task: AddK | None = None, **changes: Any) -> str:
    options: dict[str, Any] = {"name": "add_1", "prompts": 4, "seed": 3, "kind": "few_shot",
                               "mlps": False, **changes}  # fmt: skip
    return cache_name(lm or digit_lm("llama"), task or add_k(k=[1, 9, 30], held_out_k=[9]),
                      **options)  # fmt: skip


class Stranger:
    """A model as the cache sees it, with another source."""

    def __init__(self, **changes: Any) -> None:
        self.source = replace(digit_lm("llama").source, **changes)


def test_everything_that_a_mean_depends_on_is_in_its_name() -> None:
    others = {
        "weights": named(digit_lm("gpt2")),
        "fingerprint": named(Stranger(fingerprint="0" * 64)),  # type: ignore[arg-type]
        "revision": named(Stranger(revision="v2")),  # type: ignore[arg-type]
        "dtype": named(Stranger(dtype="bfloat16")),  # type: ignore[arg-type]
        "template": named(task=add_k(k=[1, 9, 30], held_out_k=[9], template="question_answer")),
        "shots": named(task=add_k(k=[1, 9, 30], held_out_k=[9], shots=3)),
        "items": named(task=add_k(k=[1, 9, 30], held_out_k=[9], x_max=7)),
        "task": named(name="add_30"),
        "prompts": named(prompts=5),
        "seed": named(seed=4),
        "kind": named(kind="shuffled"),
        "blocks": named(mlps=True),
    }
    assert len({named(), *others.values()}) == 1 + len(others)
    assert named() == named()
    # A folder's name is no part of its content.
    assert named(Stranger(name="elsewhere")) == named()  # type: ignore[arg-type]


def test_an_interrupted_estimation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    lm, task = digit_lm("llama"), add_k(k=[1, 9, 30], held_out_k=[9])
    options: dict[str, Any] = {"prompts": 4, "seed": 3, "cache": tmp_path}
    seen: list[tuple[int, int]] = []

    def stop_after_two(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_task_means(lm, task, NAMES, **options, progress=stop_after_two)
    assert seen == [(1, 3), (2, 3)]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 2
    resumed = estimate_task_means(lm, task, NAMES, **options)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    whole = estimate_task_means(lm, task, NAMES, prompts=4, seed=3)
    for a, b in zip(resumed.z, whole.z, strict=True):
        assert torch.equal(a, b)
