"""Do later demonstrations suppress what earlier ones got wrong? (a claim of Hu et al. 2025)

    a_i = <Q^T s_i, u_k>    the signal of demonstration i along its task's direction
    b_i = alpha_i a_i       the same as the head weighs it

centred per task and position.  Three statistics, the attention-free ones first: the correlation of
a_i and a_j over prompts by lag; the cancellation Var(sum a) / sum Var(a), 1 for independent
signals; and the intervention: label i is made wrong, and

    kappa_ij = - sum (change of a_j) (change of a_i) / sum (change of a_i)^2

is the share of the error that demonstration j > i takes back.  For j < i it must be exactly zero.

Nulls: softmax competition alone correlates the *weighted* signals with -1 / (n - 1), so these prove
nothing by themselves, and b is also told with every a at its mean; demonstrations shuffled across
prompts; another right demonstration in the place of the wrong one.

Shapes: P prompts, N demonstrations, r dimensions, K tasks, n shuffles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from headloc.errors import HeadlocError, TaskError
from headloc.evaluation.intervals import Estimate
from headloc.randomness import stream
from headloc.tasks import Arithmetic, Demonstration, Example

from . import self_correction_shown as shown
from .base import (
    Analysis,
    Findings,
    NotApplicable,
    Progress,
    Subject,
    require_demonstrations,
)
from .demonstrations import HeadSignals, read_demonstrations
from .head_spaces import HeadSpace, head_spaces
from .resampling import Resamples

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

ALL_HEADS = "all heads"


def along(signal_PNr: Array, direction_Kr: Array, task_P: Rows) -> Array:
    """Return a_PN: signals along the unit direction of each prompt's task."""
    size_K = np.maximum(np.linalg.norm(direction_Kr, axis=1, keepdims=True), 1e-300)
    return np.einsum("pnr,pr->pn", signal_PNr, (direction_Kr / size_K)[task_P])


def centred(a_PN: Array, task_P: Rows) -> Array:
    """Return signals without their mean over the prompts of a task, position by position."""
    out = a_PN.copy()
    for task in np.unique(task_P):
        rows = task_P == task
        out[rows] -= a_PN[rows].mean(0)
    return out


def statistics(a_PN: Array, resamples: Resamples) -> shown.Pairing:
    """Return correlations by lag and the cancellation ratio of centred signals."""
    N = a_PN.shape[1]
    square_NP = (a_PN**2).T

    def at_lag(lag: int) -> Callable[..., Array]:
        def correlation(*means: Array) -> Array:
            products, variances = means[: N - lag], means[N - lag :]
            pairs = [
                product / np.sqrt(np.maximum(variances[i] * variances[i + lag], 1e-300))
                for i, product in enumerate(products)
            ]
            return np.mean(pairs, axis=0)

        return correlation

    lags = []
    for lag in range(1, N):
        products = [a_PN[:, i] * a_PN[:, i + lag] for i in range(N - lag)]
        lags.append(resamples.of(at_lag(lag), *products, *square_NP))
    ratio = resamples.ratio(a_PN.sum(1) ** 2, (a_PN**2).sum(1))
    return shown.Pairing(tuple(lags), mean_correlation(a_PN, resamples), ratio)


def mean_correlation(a_PN: Array, resamples: Resamples) -> Estimate:
    """Return the mean correlation over all pairs, from one statistic so that it has an interval."""
    N = a_PN.shape[1]
    pairs = [(i, j) for i in range(N) for j in range(i + 1, N)]

    def correlation(*means: Array) -> Array:
        products, variances = means[: len(pairs)], means[len(pairs) :]
        return np.mean(
            [
                product / np.sqrt(np.maximum(variances[i] * variances[j], 1e-300))
                for product, (i, j) in zip(products, pairs, strict=True)
            ],
            axis=0,
        )

    return resamples.of(correlation, *(a_PN[:, i] * a_PN[:, j] for i, j in pairs), *(a_PN**2).T)


def shuffled_null(
    a_PN: Array, task_P: Rows, shuffles: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return (mean correlation_n, cancellation_n) with demonstrations shuffled across prompts.

    Within a task and a position, so that nothing but the company of a demonstration changes.
    """
    groups = [np.flatnonzero(task_P == task) for task in np.unique(task_P)]
    scale_N = np.sqrt(np.maximum((a_PN**2).mean(0), 1e-300))
    N = a_PN.shape[1]
    upper = np.triu_indices(N, 1)
    correlations, ratios = [], []
    for _ in range(shuffles):
        mixed = np.empty_like(a_PN)
        for rows in groups:
            for column in range(N):
                mixed[rows, column] = a_PN[rng.permutation(rows), column]
        matrix = (mixed.T @ mixed) / len(mixed) / np.outer(scale_N, scale_N)
        correlations.append(matrix[upper].mean())
        ratios.append((mixed.sum(1) ** 2).mean() / (mixed**2).sum(1).mean())
    return np.array(correlations), np.array(ratios)


def taken_back(change_OPNr: Array, at: int, resamples: Resamples) -> tuple[Estimate, ...]:
    """Return kappa_ij for the corrupted demonstration i = `at` and every j.

        kappa_ij = - sum <change of s_j, change of s_i> / sum |change of s_i|^2

    Args:
        change_OPNr: change of every demonstration's signal, in O orders of the demonstrations of
            a prompt, which are resampled together; r is 1 for the signal along one direction.
        at: which one was corrupted.
        resamples: resamples of the prompts.
    """
    own_OPr = change_OPNr[:, :, at]
    size_P = (own_OPr**2).sum((0, -1))
    return tuple(
        resamples.ratio(-(change_OPNr[:, :, j] * own_OPr).sum((0, -1)), size_P)
        for j in range(change_OPNr.shape[2])
    )


def taken_back_by_all(change_OPNr: Array, at: int, resamples: Resamples) -> Estimate | None:
    """Return the sum of kappa_ij over all j > i; None for the last demonstration."""
    if at + 1 == change_OPNr.shape[2]:
        return None
    own_OPr = change_OPNr[:, :, at]
    later_OPr = change_OPNr[:, :, at + 1 :].sum(2)
    return resamples.ratio(-(later_OPr * own_OPr).sum((0, -1)), (own_OPr**2).sum((0, -1)))


def earlier_moved(change_OPNr: Array, at: int) -> float:
    """Return the largest change before the corrupted demonstration, relative to its own."""
    if at == 0:
        return 0.0
    own = np.abs(change_OPNr[:, :, at]).max()
    return float(np.abs(change_OPNr[:, :, :at]).max() / max(own, 1e-300))


@dataclass(frozen=True)
class SelfCorrection(Analysis):
    """Options.

    Attributes:
        dimensions: dimensions r of the aggregation subspace.
        shots: numbers of demonstrations n to look at.
        prompts: prompts per number of demonstrations.
        corrupted_prompts: prompts of the intervention, with the task's own number of
            demonstrations.
        orders: orders of the same demonstrations that the intervention is repeated in.
        shuffles: shuffles of the null.
    """

    dimensions: int = 6
    shots: tuple[int, ...] | list[int] = (2, 5, 8)
    prompts: int = 512
    corrupted_prompts: int = 128
    orders: int = 2
    shuffles: int = 200
    name: ClassVar[str] = "self_correction"
    question: ClassVar[str] = "Do later demonstrations correct earlier ones?"

    def __post_init__(self) -> None:
        counts = (self.dimensions, self.prompts, self.corrupted_prompts, self.orders, self.shuffles)
        if min(counts) < 1 or not self.shots or min(self.shots) < 2:
            raise HeadlocError(
                "The options of analysis=self_correction must be 1 or more, and analysis.shots a "
                "list of numbers of demonstrations, 2 or more each."
            )

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        require_demonstrations(subject, 2)
        task = subject.task
        if not isinstance(task, Arithmetic):
            raise NotApplicable(
                f"A wrong label needs tasks that label every input; the family {task.name} does "
                "not say what another task's label would be. Use add_k, subtract_k or multiply_k."
            )
        spaces = head_spaces(subject)
        N, orders = task.shots, self.orders
        total = len(self.shots) * self.prompts + orders * (2 * N + 1) * self.corrupted_prompts
        done = [0]

        def read(examples: Sequence[Example], attention: bool) -> list[HeadSignals]:
            before = done[0]
            found = read_demonstrations(
                subject, spaces, self.dimensions, examples, attention=attention,
                progress=lambda rows, _: progress(before + rows, total),
            )  # fmt: skip
            done[0] += len(examples)
            return found

        company = [self._company(subject, spaces, read, shots) for shots in self.shots]
        corrections = self._intervene(subject, task, spaces, read)
        return shown.findings([one for some in company for one in some], corrections, N)

    def _company(
        self,
        subject: Subject,
        spaces: Sequence[HeadSpace],
        read: Callable[[Sequence[Example], bool], list[HeadSignals]],
        shots: int,
    ) -> list[shown.Company]:
        """Return the correlations of the signals of demonstrations that stand together."""
        try:
            examples = subject.examples(self.prompts, f"self-correction {shots}", shots=shots)
        except TaskError as error:
            raise HeadlocError(f"analysis.shots holds {shots}: {error}") from None
        signals = read(examples, True)
        task_P = _rows(subject, examples)
        resamples = Resamples(len(examples), subject.seed)
        rng = stream(subject.seed, "analysis", "self-correction", "shuffles", str(shots))
        found = []
        for name, signal_PNr, direction_Kr, attention_PN in _readings(
            spaces, signals, self.dimensions
        ):
            raw_PN = along(signal_PNr, direction_Kr, task_P)
            a_PN = centred(raw_PN, task_P)
            weighted = steady = None
            if attention_PN is not None:
                weighted = statistics(centred(attention_PN * raw_PN, task_P), resamples)
                # Every signal at its mean: what is left is the competition for attention.
                mean_PN = raw_PN - a_PN
                steady = statistics(centred(attention_PN * mean_PN, task_P), resamples)
            null = shuffled_null(a_PN, task_P, self.shuffles, rng)
            found.append(
                shown.Company(name, shots, statistics(a_PN, resamples), weighted, steady, *null)
            )
        return found

    def _intervene(
        self,
        subject: Subject,
        task: Arithmetic,
        spaces: Sequence[HeadSpace],
        read: Callable[[Sequence[Example], bool], list[HeadSignals]],
    ) -> list[shown.Correction]:
        """Return kappa with wrong labels and with other right demonstrations, per head."""
        base = subject.examples(self.corrupted_prompts, "self-correction corrupted")
        rng = stream(subject.seed, "analysis", "self-correction", "corruption")
        changes: dict[tuple[str, str, int], list[Array]] = {}
        directions: list[tuple[str, Array]] = []
        task_P = _rows(subject, base)
        for _ in range(self.orders):
            ordered = [_reordered(example, rng) for example in base]
            plain = list(_readings(spaces, read(ordered, False), self.dimensions))
            directions = [(name, direction_Kr) for name, _, direction_Kr, _ in plain]
            for at in range(task.shots):
                variants = {
                    "wrong label": [_mislabelled(task, e, at, rng) for e in ordered],
                    "other right one": [_replaced(subject, e, at, rng) for e in ordered],
                }
                for kind, examples in variants.items():
                    other = _readings(spaces, read(examples, False), self.dimensions)
                    for (name, before, _, _), (_, after, _, _) in zip(plain, other, strict=True):
                        changes.setdefault((name, kind, at), []).append(after - before)
        # Orders of one prompt are resampled together.
        resamples = Resamples(len(base), subject.seed)
        found = []
        for name, direction_Kr in directions:
            for kind in ("wrong label", "other right one"):
                for at in range(task.shots):
                    each_OPNr = np.stack(changes[name, kind, at])
                    lined_OPN = np.stack([along(c, direction_Kr, task_P) for c in each_OPNr])
                    found.append(
                        shown.Correction(
                            head=name,
                            kind=kind,
                            corrupted=at,
                            kappa=taken_back(lined_OPN[..., None], at, resamples),
                            kappa_subspace=taken_back(each_OPNr, at, resamples),
                            net=taken_back_by_all(each_OPNr, at, resamples),
                            by_order=tuple(taken_back(c[None], at, resamples) for c in each_OPNr),
                            earlier_moved=earlier_moved(each_OPNr, at),
                        )
                    )
        return found


def _readings(
    spaces: Sequence[HeadSpace], signals: Sequence[HeadSignals], size: int
) -> list[tuple[str, Array, Array, Array | None]]:
    """Return (name, signal_PNr, direction_Kr, attention_PN) of every head, and of all together.

    All together: the signals of all heads along the first r components of their joint directions.
    """
    found: list[tuple[str, Array, Array, Array | None]] = []
    for space, one in zip(spaces, signals, strict=True):
        direction_Kr = (space.centred_KD @ space.basis(size)).numpy()
        found.append((str(space.head), one.signal_PNr, direction_Kr, one.attention_PN))
    if len(spaces) > 1:
        wide_KF = np.concatenate([direction_Kr for _, _, direction_Kr, _ in found], axis=-1)
        # Heads that do not tell tasks apart have short directions, and so hardly count.
        _, _, rows_RF = np.linalg.svd(wide_KF - wide_KF.mean(0), full_matrices=False)
        basis_Fr = rows_RF[:size].T
        signal_PNF = np.concatenate([signal_PNr for _, signal_PNr, _, _ in found], axis=-1)
        found.append((ALL_HEADS, signal_PNF @ basis_Fr, wide_KF @ basis_Fr, None))
    return found


def _rows(subject: Subject, examples: Sequence[Example]) -> Rows:
    row_of = {task: row for row, task in enumerate(subject.tasks)}
    return np.array([row_of[example.task] for example in examples])


def _reordered(example: Example, rng: np.random.Generator) -> Example:
    order = rng.permutation(example.shots)
    return replace(example, demonstrations=tuple(example.demonstrations[i] for i in order))


def _mislabelled(task: Arithmetic, example: Example, at: int, rng: np.random.Generator) -> Example:
    """Give one demonstration the label of another number."""
    own = task.offset(example.task)
    others = [k for k in map(task.offset, (*task.train, *task.held_out)) if k != own]
    pair = example.demonstrations[at]
    wrong = str(task.apply(int(pair.input), others[rng.integers(len(others))]))
    return _with(example, at, Demonstration(pair.input, wrong))


def _replaced(subject: Subject, example: Example, at: int, rng: np.random.Generator) -> Example:
    """Put another right demonstration of the same task in the place of one."""
    shown_inputs = {pair.input for pair in example.demonstrations} | {example.query}
    while True:
        other = subject.task.example(example.task, rng, items="score").demonstrations
        fresh = [pair for pair in other if pair.input not in shown_inputs]
        if fresh:
            return _with(example, at, fresh[0])


def _with(example: Example, at: int, pair: Demonstration) -> Example:
    shown_pairs = list(example.demonstrations)
    shown_pairs[at] = pair
    return replace(example, demonstrations=tuple(shown_pairs))
