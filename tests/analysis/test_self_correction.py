"""Planted pairs of demonstrations: one corrects itself, one merely competes for attention."""

from __future__ import annotations

import numpy as np
import pytest

from headloc.analysis.base import NotApplicable, Subject
from headloc.analysis.pairing import (
    along,
    centred,
    earlier_moved,
    mean_correlation,
    shuffled_null,
    statistics,
    taken_back,
    taken_back_by_all,
)
from headloc.analysis.resampling import Resamples
from headloc.analysis.self_correction import SelfCorrection
from headloc.analysis.self_correction_shown import Company
from headloc.errors import HeadlocError
from headloc.tasks import Labels
from tests.analysis.subjects import circuit_of, quiet, tiny_subject

PROMPTS = 1200


def softmax(scores: np.ndarray) -> np.ndarray:
    raised = np.exp(scores - scores.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def planted(kind: str, shots: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signals a_PN, attention_PN and tasks of prompts in which demonstrations correct or compete.

    correcting: half of what a demonstration says too much, the next one takes back; attention is
    the same for all.  competing: signals are independent, and attention is a softmax.
    """
    drawn = np.random.default_rng(4)
    tasks = drawn.integers(6, size=PROMPTS)
    errors = drawn.normal(size=(PROMPTS, shots))
    attention = np.full((PROMPTS, shots), 1 / shots)
    if kind == "correcting":
        for i in range(1, shots):
            errors[:, i] -= 0.5 * errors[:, i - 1]
    else:
        attention = softmax(2 * drawn.normal(size=(PROMPTS, shots)))
    means = 10 + tasks[:, None] + np.arange(shots)
    return means + 0.5 * errors, attention, tasks


def company(kind: str) -> Company:
    raw, attention, tasks = planted(kind)
    shared = Resamples(PROMPTS, seed=0)
    a = centred(raw, tasks)
    weighted = statistics(centred(attention * raw, tasks), shared)
    steady = statistics(centred(attention * (raw - a), tasks), shared)
    null = (found[:, 0] for found in shuffled_null(a[None], tasks, 200, np.random.default_rng(0)))
    return Company("L0H0", 5, statistics(a, shared), weighted, steady, *null)


def test_a_correcting_pair_and_a_competing_pair_are_told_apart() -> None:
    correcting, competing = company("correcting"), company("competing")
    assert correcting.verdict == "cancelling"
    assert competing.verdict == "competition"
    # The attention-free statistic alone tells them apart ...
    assert correcting.plain.by_lag[0].high < -0.3
    assert correcting.plain.cancellation.high < 0.8
    assert abs(competing.plain.correlation.value) < 0.03
    assert competing.plain.cancellation.low < 1 < competing.plain.cancellation.high
    # ... and the weighted one does not: softmax alone gives -1/(n-1).
    assert competing.weighted is not None
    assert competing.weighted.correlation.value == pytest.approx(-1 / 4, abs=0.04)
    assert competing.steady is not None
    assert competing.steady.correlation.value == pytest.approx(-1 / 4, abs=0.04)
    assert correcting.p < 0.01 < competing.p


def test_independent_signals_are_neither() -> None:
    drawn = np.random.default_rng(8)
    raw, tasks = drawn.normal(size=(PROMPTS, 4)), drawn.integers(5, size=PROMPTS)
    shared = Resamples(PROMPTS, seed=0)
    a = centred(raw, tasks)
    null = (found[:, 0] for found in shuffled_null(a[None], tasks, 200, np.random.default_rng(0)))
    flat = statistics(a / 4, shared)
    found = Company("L0H0", 4, statistics(a, shared), flat, flat, *null)
    assert found.verdict == "none"
    low, high = found.null_interval
    assert low < 0 < high
    assert found.plain.cancellation.value == pytest.approx(1.0, abs=0.1)


def test_centring_takes_out_what_a_task_and_a_position_explain() -> None:
    raw, _, tasks = planted("correcting")
    a = centred(raw, tasks)
    for task in range(6):
        assert np.abs(a[tasks == task].mean(0)).max() < 1e-12
    # Without it, tasks that differ make all demonstrations alike.
    shared = Resamples(PROMPTS, seed=0)
    assert mean_correlation(raw - raw.mean(0), shared).value > 0.5


def test_the_correlation_is_numpy_s() -> None:
    a = centred(*planted("correcting")[::2])
    matrix = np.corrcoef(a.T)
    shared = Resamples(PROMPTS, seed=0)
    found = statistics(a, shared)
    for lag, e in enumerate(found.by_lag, start=1):
        assert e.value == pytest.approx(np.diag(matrix, lag).mean(), abs=2e-3)
    assert found.correlation.value == pytest.approx(matrix[np.triu_indices(5, 1)].mean(), abs=2e-3)
    expected = a.sum(1).var() / a.var(0).sum()
    assert found.cancellation.value == pytest.approx(expected, abs=1e-6)


def heard(said_PN: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A head by hand: signals a_PN of demonstrations that say `said_PN`, and its attention.

    correcting: a demonstration's label token sees the one before, and takes back half of its
    signal.  competing: no label token sees another; the louder is attended to more.
    """
    signals = said_PN.copy()
    if kind == "correcting":
        for i in range(1, signals.shape[1]):
            signals[:, i] = said_PN[:, i] - 0.5 * signals[:, i - 1]
        return signals, np.full_like(signals, 1 / signals.shape[1])
    return signals, softmax(signals)


@pytest.mark.parametrize(("kind", "expected"), [("correcting", 0.5), ("competing", 0.0)])
def test_a_wrong_label_tells_a_correcting_pair_from_a_competing_one(
    kind: str, expected: float
) -> None:
    drawn = np.random.default_rng(12)
    said = drawn.normal(size=(PROMPTS, 2))
    wrong = said.copy()
    wrong[:, 0] += drawn.choice([-3.0, 3.0], size=PROMPTS)
    shared = Resamples(PROMPTS, seed=0)
    (before, attention), (after, other_attention) = heard(said, kind), heard(wrong, kind)
    change = (after - before)[None, ..., None]
    kappa = taken_back(change, 0, shared)[1]
    assert kappa.value == pytest.approx(expected, abs=1e-9)
    assert kappa.low - 1e-9 <= expected <= kappa.high + 1e-9
    # What the head makes of it moves in either case, so weighted signals tell nothing.
    weighted = other_attention * after - attention * before
    assert np.abs(weighted[:, 1]).mean() > 0.1
    # An earlier demonstration does not hear a later one.
    later = said.copy()
    later[:, 1] += 3.0
    late = (heard(later, kind)[0] - before)[None, ..., None]
    assert earlier_moved(late, 1) == 0.0


def test_shuffling_keeps_every_signal_in_its_task_and_place() -> None:
    a = np.arange(24.0).reshape(1, 8, 3)
    tasks = np.array([1, 0, 1, 0, 1, 1, 0, 0])
    blocked = np.where(tasks[None, :, None] == 1, 1000.0, 0.0) + 0 * a
    correlations, ratios = shuffled_null(blocked, tasks, 5, np.random.default_rng(0))
    # Signals that are the same within a task stay where they are: correlation 1.
    assert correlations.ravel().tolist() == pytest.approx([1.0] * 5)
    assert ratios.ravel().tolist() == pytest.approx([3.0] * 5)


@pytest.mark.parametrize("share", [-0.3, 0.0, 0.6])
def test_a_planted_share_that_is_taken_back_is_measured(share: float) -> None:
    drawn = np.random.default_rng(6)
    change = np.zeros((2, 400, 4, 3))
    change[:, :, 1] = drawn.normal(size=(2, 400, 3))
    change[:, :, 2] = -share * change[:, :, 1] + 0.1 * drawn.normal(size=(2, 400, 3))
    kappa = taken_back(change, 1, Resamples(400, seed=0))
    assert kappa[0].value == 0.0
    assert kappa[1].value == -1.0
    assert kappa[2].value == pytest.approx(share, abs=0.03)
    net = taken_back_by_all(change, 1, Resamples(400, seed=0))
    assert net is not None
    assert net.value == pytest.approx(kappa[2].value + kappa[3].value)
    assert taken_back_by_all(change, 3, Resamples(400, seed=0)) is None
    assert kappa[2].low <= share <= kappa[2].high or abs(kappa[2].value - share) < 0.02
    assert earlier_moved(change, 1) == 0.0
    change[0, 3, 0, 0] = 1e-3
    assert earlier_moved(change, 1) > 0


def test_signals_along_a_direction_are_lengths() -> None:
    directions = np.array([[2.0, 0.0], [0.0, 0.5]])
    signals = np.array([[[3.0, 4.0]], [[3.0, 4.0]]])
    np.testing.assert_allclose(along(signals, directions, np.array([0, 1])), [[3.0], [4.0]])


def test_in_a_real_forward_earlier_demonstrations_do_not_move_at_all() -> None:
    analysis = SelfCorrection(
        dimensions=3, heads="all", shots=[2, 3], prompts=24, corrupted_prompts=8, shuffles=10
    )
    found = analysis.run(tiny_subject(), quiet)
    assert found.scalars["earlier_moved"] == 0.0
    (kappa,) = [table for table in found.tables if table.name == "kappa"]
    names = {row[0] for row in kappa.rows}
    assert names == {"L0H1", "L1H0", "L1H3", "all heads"}
    # Every demonstration of three is changed, and the first of two.
    assert sum(row[4] == "all later" for row in kappa.rows) == 4 * 2 * (2 + 1)
    rows = [row for row in kappa.rows if row[0] != "all heads" and row[4] != "all later"]
    assert len(rows) == 3 * 2 * 2 * (3 * 3 + 2)
    for _, _, _, corrupted, read_at, _, value, *_ in rows:
        assert isinstance(corrupted, int)
        assert isinstance(read_at, int)
        if read_at < corrupted:
            assert value == 0.0
        elif read_at == corrupted:
            assert value == pytest.approx(-1.0)
    (orders,) = [table for table in found.tables if table.name == "orders"]
    assert {row[4] for row in orders.rows} == {1, 2}


def test_what_cannot_be_corrupted_does_not_apply() -> None:
    base = tiny_subject()
    task = Labels(shots_per_label=1, max_tasks=8)
    other = Subject(circuit_of(base.lm, task, base.heads), base.lm, task, 1, 4)
    with pytest.raises(NotApplicable, match="wrong label"):
        SelfCorrection().run(other, quiet)
    with pytest.raises(NotApplicable, match="2 demonstrations"):
        SelfCorrection().run(tiny_subject(shots=1), quiet)
    with pytest.raises(HeadlocError, match=r"analysis\.shots"):
        SelfCorrection(shots=[1])
    with pytest.raises(HeadlocError, match="holds 40"):
        SelfCorrection(shots=[40]).run(tiny_subject(), quiet)
