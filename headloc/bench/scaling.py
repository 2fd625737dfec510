"""How the cost of a step grows with heads, layers, shots, prompts and gate sets, one at a time.

Shots, prompts and gate sets vary on the model that is measured.  Heads and layers cannot vary in a
given model, so they do in random Llamas of its width (at most 512): with more heads the same width
is cut into narrower ones, which leaves everything but the gates as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from headloc.bench.comparisons import Clock, memory_of
from headloc.bench.result import Point
from headloc.bench.shapes import Shape, random_lm
from headloc.bench.steps import GateStep, Material, material
from headloc.stages import Stages
from headloc.tasks import TaskFamily

AXES: dict[str, tuple[int, ...]] = {
    "heads": (4, 8, 16, 32),
    "layers": (2, 4, 8, 16),
    "shots": (1, 3, 5, 10),
    "prompts": (16, 32, 64, 128, 256),
    "bank": (1, 2, 4, 8, 16, 32),
}
"""Heads are those of a layer, prompts those of a step, and bank counts gate sets."""

_WIDEST = 512
_LAYERS, _HEADS = 4, 8


def scaling(
    made: Material,
    clock: Clock,
    stages: Stages,
    task_of: Callable[[int], TaskFamily],
    axes: dict[str, Sequence[int]] | None = None,
) -> list[Point]:
    """Measure every axis; the points of an axis take turns.

    Args:
        made: the model with its prompts.
        clock: how to time.
        stages: shows progress.
        task_of: the task with a number of shots.
        axes: values by axis; `AXES` when None.
    """
    points: list[Point] = []
    for axis, values in (axes or AXES).items():
        with stages(f"cost by {axis}") as progress:
            steps = dict(_steps(made, axis, values, task_of))
            arms = {str(value): step for value, (_, step) in steps.items()}
            turns = clock.settings.scaling_repetitions
            timings = clock.time(made, arms, progress, turns=turns)
            for value, (own, step) in steps.items():
                batch, heads = own.prompts.batch, own.lm.layout.total
                memory = memory_of(own, step)
                columns = batch.prompt_columns
                points.append(Point(axis, value, timings[str(value)], memory, heads, columns))
    return points


def _steps(
    made: Material, axis: str, values: Sequence[int], task_of: Callable[[int], TaskFamily]
) -> Iterator[tuple[int, tuple[Material, GateStep]]]:
    if axis == "bank":
        for value in values:
            yield value, (made, made.bank_step(value))
    elif axis == "prompts":
        most = len(made.prompts)
        for value in takewhile(lambda size: size <= most, values):
            own = replace(made, batch_size=value)
            yield value, (own, own.step())
    elif axis == "shots":
        for value in values:
            own = _again(made, task=task_of(value))
            yield value, (own, own.step())
    else:
        for value in values:
            own = _again(_random(made, axis, value))
            yield value, (own, own.step())


def _random(made: Material, axis: str, value: int) -> Material:
    """Return the material with a random Llama of so many heads or layers."""
    layers, heads = (value, _HEADS) if axis == "layers" else (_LAYERS, value)
    # A multiple of twice the most heads: rotary positions need an even width of a head.
    unit = 2 * max(*AXES["heads"], _HEADS)
    width = max(unit, min(_WIDEST, made.lm.width) // unit * unit)
    options = {"num_key_value_heads": heads, "intermediate_size": 2 * width}
    shape = Shape("llama", layers, heads, width, None, options)
    name = f"llama-{layers}x{heads}x{width}"
    lm = random_lm(shape, name=name, seed=made.seed, dtype=made.lm.dtype, device=made.lm.device)
    return replace(made, lm=lm)


def _again(made: Material, task: TaskFamily | None = None) -> Material:
    """Return material of the same sizes with prompts drawn anew."""
    return material(
        made.lm,
        task or made.task,
        prompts=len(made.prompts),
        batch_size=made.batch_size,
        seed=made.seed,
    )
