"""The best sets: every subset against a loop of single scores, and the beam on planted problems."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from headloc.compare.optimum import as_masks, find_optimum
from headloc.compare.outcomes import complement, score_sets
from headloc.evaluation.scoring import score
from headloc.evaluation.subsets import SubsetScorer
from headloc.objectives import InPlace
from headloc.randomness import stream
from tests.objectives.by_hand import TOTAL, add_k, digit_lm

TASK = add_k(held_out_k=[9])


def prompts_of(objective: InPlace, use: str, count: int = 12) -> Any:
    lm = digit_lm("gpt2")
    objective.prepare(lm, TASK, seed=1, prompts=8)
    return objective.prompt_set(
        lm, TASK, TASK.draw(count, stream(2, use), split="train"), seed=2, use=use
    )


def test_every_subset_is_tried() -> None:
    lm, objective = digit_lm("gpt2"), InPlace("mean")
    prompts = prompts_of(objective, "truth")
    worth = SubsetScorer.of(objective, lm, prompts)
    found = find_optimum(worth, worth, beam=1, finalists=3)
    assert found.exact
    for size in (0, 1, 2, TOTAL - 1, TOTAL):
        best = max(
            (
                (outcome.accuracy, float(outcome.log_probability.mean()), own)
                for own in combinations(range(TOTAL), size)
                for outcome in [score(objective, lm, prompts, as_masks([own], TOTAL)[0])]
            ),
            key=lambda one: (one[0], round(one[1], 4)),
        )
        chosen = score(objective, lm, prompts, as_masks([found.sets[size]], TOTAL)[0])
        assert chosen.accuracy == best[0]
        assert float(chosen.log_probability.mean()) == pytest.approx(best[1], abs=1e-3)


@dataclass
class Planted:
    """A made-up worth over more heads than can all be tried: pairs that need each other."""

    heads: int = 20
    pairs: tuple[tuple[int, int], ...] = ((3, 7), (11, 18))
    seen: int = 0

    @property
    def lm(self) -> Any:
        return SimpleNamespace(layout=SimpleNamespace(total=self.heads))

    def __call__(self, gates_GA: Tensor, progress: object = None) -> tuple[Tensor, Tensor]:
        self.seen += len(gates_GA)
        held = torch.stack([gates_GA[:, a] * gates_GA[:, b] for a, b in self.pairs], 1).double()
        single = gates_GA[:, [head for pair in self.pairs for head in pair]].double().sum(1)
        return held.mean(1), held.sum(1) + 0.01 * single - 0.001 * gates_GA.double().sum(1)


def test_a_beam_finds_planted_pairs_and_says_that_it_is_a_beam() -> None:
    worth: Any = Planted()
    found = find_optimum(worth, worth, beam=3, finalists=4)
    assert not found.exact
    assert found.search == "beam"
    assert sorted(found.sets) == list(range(21))
    assert found.sets[4] == (3, 7, 11, 18)
    assert found.sets[2] in worth.pairs
    assert worth.seen < 2**12


class Hidden(Planted):
    """The same, with one set of three that no single step leads to."""

    secret = (0, 1, 2)

    def __call__(self, gates_GA: Tensor, progress: object = None) -> tuple[Tensor, Tensor]:
        accuracy, log_p = super().__call__(gates_GA)
        return accuracy + 2 * (gates_GA == as_masks([self.secret], 20)[0]).all(1).double(), log_p


def test_sets_of_methods_take_part_in_a_beam() -> None:
    worth: Any = Hidden()
    assert find_optimum(worth, worth, beam=1, finalists=2).sets[3] != Hidden.secret
    found = find_optimum(worth, worth, beam=1, finalists=2, candidates=[Hidden.secret])
    assert found.sets[3] == Hidden.secret


def test_a_set_of_a_method_is_no_second_finalist_of_an_exhaustive_search() -> None:
    lm, objective = digit_lm("gpt2"), InPlace("zero")
    prompts = prompts_of(objective, "truth")
    worth = SubsetScorer.of(objective, lm, prompts)
    alone = find_optimum(worth, worth, beam=1, finalists=2)
    again = find_optimum(worth, worth, beam=1, finalists=2, candidates=alone.sets.values())
    assert again.sets == alone.sets


def test_each_set_is_scored_once_and_as_alone() -> None:
    lm, objective = digit_lm("gpt2"), InPlace("zero")
    prompts = prompts_of(objective, "test", 6)
    sets = [(0, 3), (), (0, 3), (1,), tuple(range(TOTAL))]
    found = score_sets(objective, lm, prompts, sets)
    assert len(found.row) == 4
    for own in sets:
        alone = score(objective, lm, prompts, as_masks([own], TOTAL)[0])
        assert found.accuracy(own) == alone.accuracy
        torch.testing.assert_close(
            torch.from_numpy(found.log_probability(own)),
            torch.from_numpy(alone.log_probability),
            rtol=1e-3, atol=1e-3,
        )  # fmt: skip
    assert complement((0, 3), 5) == (1, 2, 4)
