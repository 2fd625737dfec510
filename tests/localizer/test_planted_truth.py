"""Planted truth: every objective trains open the heads that carry the task, every rule finds them.

The rules differ in what they call a head set, so the setting is chosen such that each one's own
definition has the planted heads for its exact answer:

    threshold, largest_gap, elbow   all other gates end near 0, the planted ones far from it
    mass                            its share, 0.95, is more than two of three similar gates hold
    top_n, auto with a target       three are asked for
    kept, swap, auto                two heads leave every second answer open, so no fewer keep 98 %

Top-k gates are a ranking and no set: the rules that cut a ranking are tried on them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from headloc import localize
from headloc.errors import HeadlocError
from headloc.evaluation.scoring import score
from headloc.gates import HardConcreteGates, L1Gates, PenaltySparsity, TopKGates
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.run import Localization
from headloc.localizer.selection import (
    Auto,
    Elbow,
    Kept,
    LargestGap,
    Mass,
    Ranking,
    Selection,
    Threshold,
    TopN,
)
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.localizer.swap import Swap
from headloc.objectives import FunctionVector, InPlace, Objective, Patch
from headloc.randomness import stream
from headloc.refinement.run import refine
from headloc.refinement.settings import RefineSettings
from tests.localizer.carried import LABELS, PLANTED, Constant, carried_lm

OBJECTIVES = {
    "in_place": lambda: InPlace("zero"),
    "function_vector": lambda: FunctionVector(prompts_per_task=8),
    "patch": lambda: Patch(prompts_per_task=8),
}
GATES = {
    # Exact zeros, and planted gates of unlike size; exact ones and zeros.
    "l1": (L1Gates(), PenaltySparsity(0.2), OptimizerSettings(lr=0.1, final_lr=1.0)),
    "hard_concrete": (HardConcreteGates(), PenaltySparsity(0.05), OptimizerSettings(lr=0.15)),
}
TOP_K = (TopKGates(), PenaltySparsity(), OptimizerSettings(lr=0.1))
RULES = {
    "threshold": Threshold(),
    "elbow": Elbow(),
    "largest_gap": LargestGap(),
    "mass": Mass(),
    "top_n": TopN(3),
    "kept": Kept(),
    "swap": Swap(),
    "auto": Auto().settled(None),
    "auto with a target": Auto().settled(3),
}
OF_A_RANKING = ("top_n", "kept", "swap", "auto", "auto with a target")


@cache
def trained(objective: str, gates: str) -> tuple[Localization, Objective]:
    """One training per objective and kind of gate; the rules are tried on its gates."""
    lm, intervention = carried_lm(), OBJECTIVES[objective]()
    kind, sparsity, optimizer = {**GATES, "top_k": TOP_K}[gates]
    result = localize(
        lm,
        Constant(),
        objective=intervention,
        gates=kind,
        sparsity=sparsity,
        optimizer=optimizer,
        selection=RULES["kept" if gates == "top_k" else "elbow"],
        data=DataSettings(128, 32, 32, 16, 32, batch_size=32),
        verdict=VerdictSettings(random_sets=3),
        trainer={"max_epochs": 14, "accelerator": "cpu", "enable_progress_bar": False},
    )
    return result, intervention


def flat() -> list[int]:
    return carried_lm().layout.indices(PLANTED)


def chosen(rule: str, objective: str, ranking: Ranking) -> list[int]:
    """What a rule makes of a ranking, on prompts of its own."""
    lm, (_, intervention) = carried_lm(), trained(objective, "l1")
    examples = Constant().draw(32, stream(5, "rules"), split="train", items="fit")
    prompts = intervention.prompt_set(lm, Constant(), examples, seed=5, use="rules")
    full = score(intervention, lm, prompts, None).accuracy
    assert full == 1.0

    def accuracy(gates_A: Tensor) -> float:
        return score(intervention, lm, prompts, gates_A).accuracy

    selection: Selection = RULES[rule]
    return selection.select(ranking, accuracy, full)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_exactly_the_planted_heads(rule: str, objective: str, gates: str) -> None:
    result, _ = trained(objective, gates)
    assert chosen(rule, objective, Ranking(*result.history.averaged(3))) == flat()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rule", OF_A_RANKING)
def test_every_rule_that_cuts_a_ranking_finds_them_by_top_k_gates(
    rule: str, objective: str
) -> None:
    result, _ = trained(objective, "top_k")
    assert chosen(rule, objective, Ranking(*result.history.averaged(3))) == flat()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_swap_finds_them_behind_a_ranking_that_is_wrong(objective: str) -> None:
    scores_A = -torch.arange(12.0)
    # Two heads that carry nothing come first, a planted one comes last but one.
    scores_A[[flat()[0], flat()[1], flat()[2]]] = torch.tensor([-1.5, -2.5, -9.5])
    scores_A[[0, 3]] = torch.tensor([1.0, 2.0])
    ranking = Ranking(scores_A.sigmoid(), scores_A)
    assert chosen("swap", objective, ranking) == flat()
    kept = chosen("kept", objective, ranking)
    assert set(flat()) < set(kept)
    assert set(chosen("top_n", objective, ranking)) != set(flat())


@pytest.mark.parametrize("gates", [*GATES, "top_k"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_hands_them_on_and_its_verdict_knows_that_they_are_enough(
    objective: str, gates: str
) -> None:
    result, _ = trained(objective, gates)
    assert result.circuit.heads == PLANTED
    for prefix in ("", "held_out/"):
        metrics = {key: result.metrics[f"{prefix}accuracy/{key}"] for key in
                   ("full", "circuit", "without_circuit", "random", "off")}  # fmt: skip
        assert (metrics["full"], metrics["circuit"]) == (1.0, 1.0)
        # Without any bit all labels are alike, and the first in the vocabulary is said.
        assert max(metrics["without_circuit"], metrics["off"]) <= 2 / len(LABELS)
        assert metrics["random"] <= 0.6


def test_each_planted_head_is_needed_and_no_other_head_matters() -> None:
    lm = carried_lm()
    for name in OBJECTIVES:
        _, intervention = trained(name, "l1")
        examples = Constant().draw(56, stream(6, "needed"), split="train")
        prompts = intervention.prompt_set(lm, Constant(), examples, seed=6, use="needed")
        for index in range(lm.layout.total):
            gates_A = torch.zeros(lm.layout.total)
            gates_A[flat()] = 1.0
            gates_A[index] = 1.0 - gates_A[index]
            found = score(intervention, lm, prompts, gates_A).accuracy
            assert (found <= 0.6) if index in flat() else (found == 1.0), (name, index)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "in_place"])
def test_task_means_hold_the_bits_of_the_labels(objective: str) -> None:
    _, intervention = trained(objective, "l1")
    means: Any = intervention.means  # type: ignore[attr-defined]
    assert set(means.tasks) == set(LABELS)
    for bit, head in enumerate(PLANTED):
        reading_K = means.z[head.layer][:, head.head, 0]
        signs = [1.0 if LABELS.index(task) >> (2 - bit) & 1 else -1.0 for task in means.tasks]
        assert reading_K.sign().tolist() == signs


def test_refinement_calls_the_planted_heads_main_and_no_other() -> None:
    lm, task = carried_lm(), Constant()
    _, intervention = trained("function_vector", "l1")
    result = refine(
        lm,
        task,
        intervention,
        tuple(lm.layout.head(index) for index in range(lm.layout.total)),
        settings=RefineSettings(
            doses=6, scan_prompts=84, prompts=28, aie_prompts=0, mean_prompts=14, random_sets=2
        ),
        seed=3,
    )
    assert result.significance.significant == result.significance.main == PLANTED
    table = result.tables["held_out"]
    assert table.row("main_alone").correct_RN.all()
    assert table.row("clean").correct_RN.all()
    assert not table.row("zero_shot").correct_RN.any()
    assert not table.row("without_main").correct_RN.all()
    assert table.row("without_random_main").correct_RN.all()


def test_labels_that_are_all_alike_cannot_be_shuffled_for_aie() -> None:
    _, intervention = trained("function_vector", "l1")
    with pytest.raises(HeadlocError, match="aie_prompts=0"):
        refine(carried_lm(), Constant(), intervention, PLANTED, settings=RefineSettings())
