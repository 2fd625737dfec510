"""Which offset does the signal of a single demonstration say?

In prompts whose demonstrations all use offsets of their own, the offset of demonstration i is
decoded from its signal, and leakage tells how much of another demonstration's offset is in it.
Decoders are fitted on prompts of their own.

Shapes: P prompts, N demonstrations, S signals, K tasks, r dimensions, F coordinates of all heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate
from headloc.randomness import stream
from headloc.tasks import Arithmetic, Demonstration, Example

from . import signals_picture as picture
from .base import Findings, Picture, Table
from .demonstrations import HeadSignals
from .head_spaces import HeadSpace
from .resampling import Resamples

Array = NDArray[np.float64]


def decode(signal_PF: Array, points_KF: Array, *, by: str = "distance") -> NDArray[np.int64]:
    """Return the row of the nearest of K points for every signal.

    Args:
        signal_PF: signals.
        points_KF: what the tasks look like.
        by: distance (Euclidean), or angle (cosine).
    """
    if by == "angle":
        return (unit(signal_PF) @ unit(points_KF).T).argmax(1)
    gap_PK = (points_KF**2).sum(1) - 2 * signal_PF @ points_KF.T
    return gap_PK.argmin(1)


def whitening(spread_PF: Array) -> Array:
    """Return W_FF for which W W^T is the inverse covariance, slightly ridged."""
    covariance = spread_PF.T @ spread_PF / len(spread_PF)
    sizes, vectors = np.linalg.eigh(covariance)
    found: Array = vectors / np.sqrt(sizes + 1e-6 * max(sizes.max(), 1e-300))
    return found


def unit(rows: Array) -> Array:
    """Return rows of length 1; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-300)


def leakage(signal_PNF: Array, offset_PN: NDArray[np.int64], directions_KF: Array) -> Array:
    """Return moment_PNN: <s_i, d_{k_j}> for every prompt, read at i, offset of demonstration j.

    With offsets drawn independently and directions that average to zero, an entry beside the
    diagonal has mean zero unless the signal at i carries the offset of j.
    """
    shown_PNF = directions_KF[offset_PN]
    return np.einsum("pif,pjf->pij", signal_PNF, shown_PNF)


def mixed_examples(
    task: Arithmetic, examples: Sequence[Example], seed: int
) -> tuple[list[Example], NDArray[np.int64]]:
    """Return examples whose demonstrations each use an offset of their own, and the offsets.

    Returns:
        the examples, and shown_PN, the place of each offset among training and held-out tasks.
    """
    numbers = [task.offset(name) for name in (*task.train, *task.held_out)]
    rng = stream(seed, "analysis", "mixed offsets")
    found, rows = [], []
    for example in examples:
        drawn = rng.integers(len(numbers), size=example.shots)
        rows.append(drawn)
        shown = tuple(
            Demonstration(pair.input, str(task.apply(int(pair.input), numbers[i])))
            for pair, i in zip(example.demonstrations, drawn, strict=True)
        )
        found.append(replace(example, demonstrations=shown))
    return found, np.stack(rows)


@dataclass(frozen=True, slots=True)
class Decoder:
    """What the signal of a demonstration looks like for each task.

    Attributes:
        tasks: names of the K tasks.
        centres: per head, the mean signal over tasks.
        centroids: per head, mean signals of the tasks, centroid_Kr.
        whitening_FF: makes the spread within tasks round, for the signals of all heads together.
        directions: per head, the tasks' mean outputs relative to their mean, direction_Kr.
    """

    tasks: tuple[str, ...]
    centres: tuple[Array, ...]
    centroids: tuple[Array, ...]
    whitening_FF: Array
    directions: tuple[Array, ...]

    @classmethod
    def fit(
        cls,
        spaces: Sequence[HeadSpace],
        size: int,
        fitted: Sequence[HeadSignals],
        shown_PN: NDArray[np.int64],
    ) -> Decoder:
        """Average the signals of demonstrations by the task they show, over all positions."""
        tasks, shown_S = spaces[0].tasks, shown_PN.ravel()
        centroids, directions, within = [], [], []
        for space, signals in zip(spaces, fitted, strict=True):
            signal_Sr = signals.signal_PNr.reshape(len(shown_S), -1)
            overall = signal_Sr.mean(0)
            centroids.append(
                np.stack([
                    signal_Sr[shown_S == row].mean(0) if (shown_S == row).any() else overall
                    for row in range(len(tasks))
                ])
            )  # fmt: skip
            within.append(signal_Sr - centroids[-1][shown_S])
            direction_Kr = (space.centred_KD @ space.basis(size)).numpy()
            directions.append(direction_Kr - direction_Kr.mean(0))
        centres = tuple(found.mean(0) for found in centroids)
        whitening_FF = whitening(np.concatenate(within, axis=-1))
        return cls(tasks, centres, tuple(centroids), whitening_FF, tuple(directions))

    def centre(self, head: int) -> Array:
        """Return the mean signal of a head."""
        return self.centres[head]

    def rows(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        """Return the task row of every example."""
        row_of = {task: row for row, task in enumerate(self.tasks)}
        return np.array([row_of[example.task] for example in examples])


def decoding_findings(
    task: Arithmetic,
    seed: int,
    spaces: Sequence[HeadSpace],
    decoder: Decoder,
    mixed: Sequence[HeadSignals],
    shown_PN: NDArray[np.int64],
) -> Findings:
    """Decode offsets from the signals of prompts in which every demonstration has its own."""
    resamples = Resamples(len(shown_PN), seed)
    offsets_K = np.array([task.offset(name) for name in decoder.tasks])
    N = shown_PN.shape[1]
    sources: dict[str, tuple[Array, Array, str]] = {}
    for i, (space, signals) in enumerate(zip(spaces, mixed, strict=True)):
        centred = signals.signal_PNr - decoder.centre(i)
        sources[str(space.head)] = (signals.signal_PNr, decoder.centroids[i], "distance")
        sources[f"{space.head} by direction"] = (centred, decoder.directions[i], "angle")
    all_PNF = np.concatenate([signals.signal_PNr for signals in mixed], axis=-1)
    white_FF = decoder.whitening_FF
    all_KF = np.concatenate(decoder.centroids, axis=-1)
    sources["all heads"] = (all_PNF @ white_FF, all_KF @ white_FF, "distance")
    rows: list[list[Any]] = []
    scalars: dict[str, float] = {}
    accuracy: dict[str, list[Estimate]] = {}
    confusion = np.zeros((len(offsets_K), len(offsets_K)))
    for name, (signal_PNF, points_KF, by) in sources.items():
        for i in range(N):
            said_P = decode(signal_PNF[:, i], points_KF, by=by)
            hit = resamples.mean(said_P == shown_PN[:, i])
            miss = resamples.mean(
                np.abs(offsets_K[said_P] - offsets_K[shown_PN[:, i]]).astype(float)
            )
            rows.append([name, i + 1, hit.value, hit.low, hit.high, miss.value, miss.low,
                         miss.high, hit.n])  # fmt: skip
            accuracy.setdefault(name, []).append(hit)
            if name == "all heads":
                np.add.at(confusion, (shown_PN[:, i], said_P), 1)
                scalars |= hit.to_metrics(f"decoded/{i + 1}")
                scalars |= miss.to_metrics(f"decoded_error/{i + 1}")
    moment_PNN = leakage(all_PNF - all_KF.mean(0), shown_PN, all_KF - all_KF.mean(0))
    own_P = np.einsum("pii->p", moment_PNN) / N
    leak: list[list[Any]] = []
    grid = np.zeros((N, N))
    for i in range(N):
        for j in range(N):
            e = resamples.ratio(moment_PNN[:, i, j], own_P)
            leak.append([i + 1, j + 1, e.value, e.low, e.high, e.n])
            grid[i, j] = e.value
    lower, upper = np.tril_indices(N, -1), np.triu_indices(N, 1)
    if N > 1:
        earlier = resamples.ratio(moment_PNN[:, lower[0], lower[1]].mean(1), own_P)
        later = resamples.ratio(moment_PNN[:, upper[0], upper[1]].mean(1), own_P)
        scalars |= {**earlier.to_metrics("leakage/earlier"), **later.to_metrics("leakage/later")}
    chance = 1 / len(offsets_K)
    scalars["decoded/chance"] = chance
    order = np.argsort(offsets_K)
    best = max((a[0] for a in zip(accuracy, strict=True) if a[0] != "all heads"),
               key=lambda key: np.mean([e.value for e in accuracy[key]]))  # fmt: skip
    pooled = [e.value for e in accuracy["all heads"]]
    sentences = [
        f"In prompts whose demonstrations all use other offsets, the offset of a demonstration is "
        f"decoded from its own signal in {min(pooled):.1%} to {max(pooled):.1%} of the prompts by "
        f"position, all heads together (chance {chance:.1%}, n = {len(shown_PN)}); the best single "
        f"reading is {best} with {np.mean([e.value for e in accuracy[best]]):.1%}.",
    ]
    if N > 1:
        sentences.append(
            f"Leakage: the signal carries an earlier demonstration's offset with {earlier} of the "
            f"strength of its own, a later one's with {later} (chance: the causal mask bars it)."
        )
    return Findings(
        scalars,
        (
            Table("decoding", ("signals", "demonstration", "accuracy", "low", "high", "error",
                               "error_low", "error_high", "n"), rows,
                  "Offset decoded from the signal of one demonstration, offsets mixed; error: mean "
                  "absolute difference."),
            Table("leakage", ("read_at", "offset_of", "leakage", "low", "high", "n"), leak,
                  "How strongly the signal read at one demonstration carries the offset of "
                  "another, relative to its own."),
        ),
        (
            Picture("decoding", "Offsets decoded from single demonstrations in prompts with mixed "
                    "offsets: by position, and said against shown (all heads together).",
                    partial(picture.draw_decoding, accuracy, confusion[np.ix_(order, order)],
                            offsets_K[order], chance)),
            Picture("leakage", "Strength of another demonstration's offset in a demonstration's "
                    "signal, relative to its own; above the diagonal the causal mask lets "
                    "nothing through, so what is seen there is chance.",
                    partial(picture.draw_leakage, grid)),
        ),
        tuple(sentences),
    )  # fmt: skip
