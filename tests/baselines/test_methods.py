"""Every method behind the one interface: rankings, costs, chosen sets, circuits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headloc.baselines.ablation import LeaveOneOut
from headloc.baselines.attribution import AttributionPatching, GateGradient, IntegratedGradients
from headloc.baselines.chance import RandomOrder, layer_matched
from headloc.baselines.found import choose, circuit_of
from headloc.baselines.greedy import GreedyBackward, GreedyForward, greedy_order
from headloc.baselines.indirect_effect import ActivationPatching
from headloc.baselines.intersection import Intersection
from headloc.baselines.learned import Learned
from headloc.baselines.log_increase import LogProbabilityIncrease
from headloc.baselines.method import HeadRanking, Method, ranking_in
from headloc.baselines.problem import SearchProblem, part_of
from headloc.baselines.readout import Readout
from headloc.circuit import Circuit
from headloc.errors import HeadlocError
from headloc.evaluation.scoring import score
from headloc.lm.ledger import TokenLedger
from headloc.lm.partial import reading_stream
from headloc.localizer.floating import FloatingSettings
from headloc.objectives import FunctionVector, InPlace, Patch
from tests.baselines.problems import TASK, problem, problem_of
from tests.evaluation.test_search import additive, conjunction
from tests.tiny import FAMILIES, tiny_batch, tiny_lm

FLOAT = torch.float32
METHODS: list[Method] = [
    ActivationPatching(prompts_per_mean=2, prompts_per_task=1),
    LeaveOneOut(),
    AttributionPatching(),
    GateGradient(),
    IntegratedGradients(steps=2),
    LogProbabilityIncrease(),
    Intersection(top=3),
    GreedyForward(prompts=3),
    GreedyBackward(prompts=3, criterion="accuracy"),
    RandomOrder(),
    Learned(batch_size=2, warm_prompts=2, refine=FloatingSettings(), budget=4.0),
    Learned(batch_size=2, warm_start=0.0),
]
NAMES = [f"{own.name}_{number}" for number, own in enumerate(METHODS)]


@pytest.fixture(scope="module")
def tiny() -> SearchProblem:
    return problem("llama", "mean", FLOAT)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_a_method_ranks_all_heads_twice_alike_and_makes_a_circuit(
    method: Method, tiny: SearchProblem, tmp_path: Path
) -> None:
    ranking = method.find(tiny)
    assert sorted(ranking.order) == list(range(tiny.total))
    assert ranking.scores.shape == (tiny.total,)
    assert method.find(tiny).order == ranking.order
    for size in range(tiny.total + 1):
        own = ranking.at(size)
        assert len(own) == len(set(own)) == size
        assert list(own) == sorted(own)
    with pytest.raises(HeadlocError, match="no set of size"):
        ranking.at(tiny.total + 1)
    circuit = circuit_of(method, ranking, ranking.at(3), tiny)
    circuit.save(tmp_path / "circuit")
    found = Circuit.load(tmp_path / "circuit")
    assert found.heads == circuit.heads
    assert found.selection["rule"] == method.name
    assert found.mask(tiny.lm).sum() == 3


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
@pytest.mark.parametrize("objective", [FunctionVector(prompts_per_task=2), Patch(2),
                                       InPlace("zero", positions="all")],
                         ids=lambda own: own.name)  # fmt: skip
def test_methods_serve_every_objective(method: Method, objective: InPlace) -> None:
    of = problem_of(objective, "gpt2", FLOAT, prompts=4)
    assert sorted(method.find(of).order) == list(range(of.total))


def test_leave_one_out_is_what_closing_a_head_costs(tiny: SearchProblem) -> None:
    found = LeaveOneOut().find(tiny)
    whole = score(tiny.objective, tiny.lm, tiny.search, torch.ones(tiny.total))
    for head in range(tiny.total):
        gates_A = torch.ones(tiny.total)
        gates_A[head] = 0.0
        without = score(tiny.objective, tiny.lm, tiny.search, gates_A)
        expected = (whole.log_probability - without.log_probability).mean()
        assert float(found.scores[head]) == pytest.approx(expected, abs=1e-4)


def test_costs_are_those_of_the_book(tiny: SearchProblem) -> None:
    tokens = tiny.search.batch.target_BJ.numel()
    pairs = {
        LeaveOneOut(): tiny.total + 1,
        AttributionPatching(): 3,
        GreedyBackward(): tiny.total * (tiny.total + 1) // 2,
        GreedyForward(): tiny.total * (tiny.total + 1) // 2,
        RandomOrder(): 0,
        LogProbabilityIncrease(): 1,
    }
    for method, passes in pairs.items():
        ledger = TokenLedger(prompt_tokens=1.0)
        with ledger.counting(tiny.lm, method.name):
            method.find(tiny)
        assert ledger.forward_equivalents() == passes * tokens, method.name


@pytest.mark.parametrize("budget", [1.0, 3.0])
def test_the_learned_localizer_stays_within_its_budget(budget: float) -> None:
    of = problem("llama", "mean", FLOAT, prompts=64)
    method = Learned(batch_size=4, warm_prompts=16, refine=FloatingSettings(), budget=budget)
    ledger = TokenLedger(prompt_tokens=1.0)
    with ledger.counting(of.lm, "learned"):
        method.find(of)
    limit = budget * (of.total + 1) * of.search.batch.target_BJ.numel()
    assert 0.6 * limit < ledger.forward_equivalents() <= limit


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readout_of_the_last_stream_is_the_model_s_own(family: str) -> None:
    lm = tiny_lm(family)
    batch = tiny_batch(answers=1)
    stack = lm.model.get_submodule(lm.family.layers)
    last = list(stack.children())[-1]
    seen: list[torch.Tensor] = []
    handle = last.register_forward_hook(
        lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        logits_BV = lm.logits(batch)[:, 0]
    handle.remove()
    target_B = batch.target_BJ[:, 0]
    expected = logits_BV.double().log_softmax(-1).gather(1, target_B[:, None])[:, 0]
    found = Readout(lm).log_probabilities(seen[0][:, batch.prompt_columns - 1], target_B)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), reading_stream(lm, 1):
        torch.testing.assert_close(lm.logits(batch)[:, 0], logits_BV)


def test_localize_is_find_and_choose_in_one_call(tiny: SearchProblem) -> None:
    method = LeaveOneOut()
    circuit = method.localize(tiny, keep=0.5)
    expected = choose(method.find(tiny), tiny, keep=0.5)
    assert circuit.heads == tuple(tiny.lm.layout.head(index) for index in expected)
    decided = HeadRanking((0, 1, 2), torch.zeros(3), emitted=(1, 2))
    assert choose(decided, tiny, keep=0.5) == (1, 2)


@pytest.mark.parametrize("forward", [True, False])
def test_greedy_search_puts_needed_heads_first(forward: bool) -> None:
    order = greedy_order(8, additive, forward=forward)
    worths = [float(additive(torch.eye(8)[[head]])[1]) for head in order]
    assert worths == sorted(worths, reverse=True)
    assert set(greedy_order(8, conjunction, forward=False, criterion="accuracy")[:3]) == {1, 4, 6}


def test_the_matched_control_has_as_many_heads_in_each_layer(tiny: SearchProblem) -> None:
    ranking = ranking_in([5, 0, 1, 7, 2, 3, 6, 4])
    control = layer_matched(ranking, tiny.lm.layout, seed=0)
    for size in range(9):
        for part in tiny.lm.layout.slices():
            inside = [h for h in ranking.at(size) if part.start <= h < part.stop]
            matched = [h for h in control.at(size) if part.start <= h < part.stop]
            assert len(inside) == len(matched)
    assert control.order != ranking.order


def test_the_chosen_set_is_the_smallest_that_keeps_enough(tiny: SearchProblem) -> None:
    ranking = LeaveOneOut().find(tiny)
    full = score(tiny.objective, tiny.lm, tiny.selection, None).accuracy
    chosen = choose(ranking, tiny, keep=0.5)
    accuracies = []
    for size in range(tiny.total + 1):
        gates_A = torch.zeros(tiny.total)
        gates_A[list(ranking.at(size))] = 1.0
        accuracies.append(score(tiny.objective, tiny.lm, tiny.selection, gates_A).accuracy)
    enough = [size for size, value in enumerate(accuracies) if value >= 0.5 * full - 1e-9]
    assert len(chosen) == (enough[0] if enough else tiny.total)


def test_sets_of_their_own_take_the_place_of_first_heads() -> None:
    ranking = HeadRanking((2, 0, 1), torch.zeros(3), {1: (1,)})
    assert [ranking.at(size) for size in range(4)] == [(), (1,), (0, 2), (0, 1, 2)]


@pytest.mark.parametrize("off_value", ["mean", "resample"])
def test_a_part_of_the_prompts_gives_their_part_of_the_outcomes(off_value: str) -> None:
    of = problem("gpt2", off_value, FLOAT)
    gates_GA = torch.eye(of.total)[:3]
    whole = of.scored(gates_GA, of.search).log_probability_GN
    part = of.scored(gates_GA, part_of(of.search, slice(2, 5))).log_probability_GN
    torch.testing.assert_close(part, whole[:, 2:5], rtol=1e-4, atol=1e-4)


def test_feed_forward_gates_and_bad_settings_are_refused(tiny: SearchProblem) -> None:
    with pytest.raises(HeadlocError, match="mlps"):
        SearchProblem.of(tiny.lm, TASK, InPlace("zero", mlps=True), tiny.search, tiny.selection, 0)
    with pytest.raises(HeadlocError, match="budget=0"):
        Learned(budget=0)
    with pytest.raises(HeadlocError, match="batch_size=0"):
        Learned(batch_size=0)
    with pytest.raises(HeadlocError, match="'accuracy'"):
        GreedyForward(criterion="acuracy")
    with pytest.raises(HeadlocError, match="prompts_per_mean=0"):
        ActivationPatching(prompts_per_mean=0)
