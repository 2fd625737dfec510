"""Shares, decoders and leakage on planted signals, and on a random model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headloc.analysis.base import NotApplicable
from headloc.analysis.demonstrations import GROUP_NAMES, GROUPS, read_demonstrations, shares
from headloc.analysis.head_spaces import head_spaces
from headloc.analysis.offset_decoding import decode, leakage, mixed_examples, whitening
from headloc.analysis.resampling import Resamples
from headloc.analysis.signals import Signals
from headloc.evaluation.intervals import bootstrap
from headloc.lm.batch import Role
from headloc.tasks import AddK, Labels
from tests.analysis.subjects import circuit_of, quiet, tiny_lm_with_words, tiny_subject


def test_shares_add_up_to_one_and_go_where_the_value_is() -> None:
    drawn = torch.Generator().manual_seed(0)
    roles = torch.tensor([[-1, 2, 4, 5, 6, 7, 8, 5, 0]]).expand(6, -1)
    attention = torch.rand(6, 9, generator=drawn, dtype=torch.float64) * (roles >= 0)
    values = torch.randn(6, 9, 4, generator=drawn, dtype=torch.float64)
    toward = torch.randn(6, 4, generator=drawn, dtype=torch.float64)
    output = torch.einsum("bt,btd->bd", attention, values)
    zero, centre = torch.zeros(4).double(), torch.randn(4, generator=drawn).double()
    top, bottom = shares(attention, values, output, toward, roles, zero)
    assert top.shape == (6, len(GROUP_NAMES))
    torch.testing.assert_close(top.sum(1), bottom)
    assert top[:, -1].abs().max() == 0
    # Attention that does not add up to 1 has looked at a sink.
    top, bottom = shares(attention, values, output, toward, roles, centre)
    torch.testing.assert_close(top.sum(1), bottom)
    assert top[:, -1].abs().max() > 0
    only_label = values * (roles == int(Role.LABEL))[..., None]
    output = torch.einsum("bt,btd->bd", attention, only_label)
    top, bottom = shares(attention, only_label, output, toward, roles, zero)
    torch.testing.assert_close(top[:, 0], bottom)
    assert top[:, 1:].abs().max() == 0


def test_every_role_is_in_one_group() -> None:
    named = [role for roles in GROUPS.values() for role in roles]
    assert sorted(named) == sorted(role for role in Role if role is not Role.ANSWER)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_oss", "gemma2"])
def test_shares_of_a_model_add_up_over_the_whole_prompt(family: str) -> None:
    subject = tiny_subject(family)
    spaces = head_spaces(subject)
    examples = subject.examples(20, "test")
    for signals in read_demonstrations(subject, spaces, 4, examples, rows=7):
        np.testing.assert_allclose(
            signals.numerator_PG.sum(1), signals.denominator_P, rtol=1e-3, atol=1e-5
        )
        np.testing.assert_allclose(
            signals.centred_numerator_PG.sum(1), signals.centred_denominator_P, rtol=1e-3, atol=1e-4
        )
        assert signals.signal_PNr.shape == (20, 3, 4)


def test_signals_do_not_depend_on_the_size_of_a_chunk() -> None:
    subject = tiny_subject()
    spaces = head_spaces(subject)
    examples = subject.examples(11, "test")
    whole = read_demonstrations(subject, spaces, 4, examples)
    parts = read_demonstrations(subject, spaces, 4, examples, rows=4)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.signal_PNr, b.signal_PNr, atol=1e-5)
        np.testing.assert_allclose(a.attention_PN, b.attention_PN, atol=1e-5)


def test_mixed_examples_show_the_offsets_that_are_told() -> None:
    task = AddK(k_max=30, shots=4)
    examples = task.draw(50, np.random.default_rng(0), split="train")
    mixed, shown = mixed_examples(task, examples, seed=3)
    names = (*task.train, *task.held_out)
    for before, after, row in zip(examples, mixed, shown, strict=True):
        assert (after.query, after.answer) == (before.query, before.answer)
        for old, new, index in zip(before.demonstrations, after.demonstrations, row, strict=True):
            assert new.input == old.input
            assert int(new.output) - int(new.input) == task.offset(names[index])
    assert len(np.unique(shown)) > 20
    assert mixed_examples(task, examples, seed=3)[0] == mixed


def planted(leak: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signals that carry their own offset, and `leak` of that of the demonstration before."""
    drawn = np.random.default_rng(seed)
    directions = drawn.normal(size=(12, 6))
    directions -= directions.mean(0)
    offsets = drawn.integers(12, size=(3000, 4))
    signals = directions[offsets] + 0.5 * drawn.normal(size=(3000, 4, 6))
    signals[:, 1:] += leak * directions[offsets[:, :-1]]
    return signals, offsets, directions


@pytest.mark.parametrize("leak", [0.0, 0.4])
def test_planted_leakage_is_measured_and_absent_leakage_is_not(leak: float) -> None:
    signals, offsets, directions = planted(leak)
    moment = leakage(signals, offsets, directions).mean(0)
    relative = moment / np.diag(moment).mean()
    for i in range(4):
        for j in range(4):
            expected = 1.0 if i == j else leak if j == i - 1 else 0.0
            assert relative[i, j] == pytest.approx(expected, abs=0.1)


def test_decoders_find_what_is_planted_and_chance_where_nothing_is() -> None:
    signals, offsets, directions = planted(0.0)
    for by in ("distance", "angle"):
        said = decode(signals[:, 0], directions, by=by)
        assert (said == offsets[:, 0]).mean() > 0.6
        assert (said == offsets[:, 1]).mean() == pytest.approx(1 / 12, abs=0.03)


def test_whitening_makes_a_decoder_indifferent_to_a_loud_head() -> None:
    signals, offsets, directions = planted(0.0)
    loud = np.random.default_rng(1).normal(size=(3000, 3)) * 50
    both = np.concatenate([signals[:, 0], loud], axis=1)
    points = np.concatenate([directions, np.zeros((12, 3))], axis=1)
    spread = both - points[offsets[:, 0]]
    found = whitening(spread)
    np.testing.assert_allclose(np.cov((spread @ found).T), np.eye(9), atol=0.35)
    plain = (decode(both @ found, points @ found) == offsets[:, 0]).mean()
    assert plain > 0.6


def test_intervals_are_those_of_the_evaluation() -> None:
    drawn = np.random.default_rng(2)
    top, bottom = drawn.normal(size=200), drawn.normal(size=200) + 5
    shared = Resamples(200, seed=9)
    expected = bootstrap(lambda a, b: a / b, top, bottom, seed=9)
    found = shared.ratio(top, bottom)
    assert (found.value, found.low, found.high, found.n) == pytest.approx(
        (expected.value, expected.low, expected.high, expected.n)
    )
    assert np.isnan(shared.ratio(top, bottom * 0).value)


def test_the_analysis_runs_on_a_random_model_and_gives_shares_of_one() -> None:
    found = Signals(dimensions=3, prompts=24, fit_prompts=40).run(tiny_subject(), quiet)
    (table,) = [table for table in found.tables if table.name == "shares"]
    sums: dict[tuple[object, object], float] = {}
    for head, toward, _, share, *_ in table.rows:
        sums[head, toward] = sums.get((head, toward), 0.0) + float(share or 0.0)
    assert len(sums) == 6
    for total in sums.values():
        assert total == pytest.approx(1.0, abs=1e-2)


def test_tasks_without_numbers_have_shares_but_no_offsets() -> None:
    task = Labels(labels=["11", "12"], shots_per_label=1, max_tasks=8)
    lm = tiny_lm_with_words()
    subject = tiny_subject()
    other = type(subject)(circuit_of(lm, task, subject.heads), lm, task, 1, 4)
    found = Signals(dimensions=3, prompts=8, fit_prompts=8).run(other, quiet)
    assert {table.name for table in found.tables} == {"shares", "heads", "positions"}


def test_a_task_without_demonstrations_does_not_apply() -> None:
    with pytest.raises(NotApplicable, match="shots=0"):
        Signals().run(tiny_subject(shots=0), quiet)
