"""The same seed gives the same result; what is only mechanics changes scores by rounding alone.

Mechanics are: how many rows run together (memory), where prefix caches are kept, the padding side
of the tokenizer, how many processes train (`tests/distributed`), which other gate sets are in a
bank, and which parts of the verdict are asked for.  `data.batch_size` is not among them: it is how
many prompts a step of the optimizer averages over, so it changes the gates, on the same prompts.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headloc import AddK, load_bundled, localize
from headloc.bank import PathSparsity
from headloc.cli import main
from headloc.gates import L1Gates
from headloc.lm.frozen import FrozenLM
from headloc.lm.passes import PassSizes
from headloc.localizer.run import Localization
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives import FunctionVector, InPlace
from tests.architectures.saving import OwnNumbers, answering_lm
from tests.commands.runs import SMALL
from tests.localizer.planted import OwnAnswers, planted_lm, small
from tests.trust.drawn import Drawn, disturb, global_state, recording
from tests.trust.dtypes import LAMBDA, OPERATIONS
from tests.trust.killing import differences

ROOT = Path(__file__).parents[2]
SCORES = 2 * LAMBDA * math.sqrt(6 * OPERATIONS + 4) * torch.finfo(torch.float32).eps / 2 * 20
"""Largest change of a log-probability that counts as rounding: 8e-5 nats, the tolerance of
`tests/trust/dtypes.py` for float32, six layers and logits of up to 20.  Measured: 3e-6."""
GATES = {"rtol": 1e-4, "atol": 1e-5}
"""The same of a trained gate, which Adam moves by the sign of small gradients."""

ARGUMENTS = ("localize", "debug=fast", "logger=none", *SMALL, "verdict.replicates=1")

MODELS = ("planted", "gemma3", "mixtral")


# The same run again, elsewhere.


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Drawn]:
    """A run on the bundled model with everything that draws: controls and a replicate too."""
    folder = tmp_path_factory.mktemp("determinism") / "reference"
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["headloc"])
        disturb(1)
        with recording() as drawn:
            assert main([*ARGUMENTS, f"output_dir={folder}"]) == 0
    return folder, drawn


def test_everything_that_is_drawn_is_recorded(reference: tuple[Path, Drawn]) -> None:
    _, drawn = reference
    prompts = ["means", "selection/train", "test/held_out", "test/train", "train/train"]
    assert sorted(key for key in drawn if key.startswith("prompts/")) == [
        f"prompts/{name}" for name in prompts
    ]
    # No two sets of prompts, epochs or random sets are alike.
    assert len(set(drawn.values())) == len(drawn)
    for kind in ("order/0/", "order/1000/", "controls/random/", "controls/random_layers/"):
        assert any(key.startswith(kind) for key in drawn), kind


@pytest.mark.slow
def test_another_process_in_another_place_finds_the_same_bit_for_bit(
    reference: tuple[Path, Drawn], tmp_path: Path
) -> None:
    folder, drawn = reference
    again, record = tmp_path / "again", tmp_path / "drawn.json"
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "12345", "TZ": "Asia/Kathmandu",
        "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "COLUMNS": "31", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    call = [sys.executable, "-m", "tests.trust.drawn", str(record), "--disturb", "99"]
    done = subprocess.run(
        [*call, *ARGUMENTS, f"output_dir={again}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(record.read_text()) == drawn
    assert differences(again, folder) == []


def test_more_threads_change_nothing_but_rounding() -> None:
    lm, task = load_bundled(device="cpu"), AddK()
    settings = small(data=DataSettings(32, 8, 8, 8, 8, batch_size=32),
                     verdict=VerdictSettings(random_sets=1), trainer={"max_epochs": 1})  # fmt: skip
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            with recording() as drawn:
                found.append((localize(lm, task, seed=0, **settings), drawn))
    finally:
        torch.set_num_threads(threads)
    assert found[0][1] == found[1][1]
    same_to_rounding(found[1][0], found[0][0])


# The same run with other mechanics.


class Case:
    """A model, its task, and runs on it."""

    def __init__(self, name: str) -> None:
        if name == "planted":
            known = planted_lm()
            self.lm = FrozenLM(known.model, known.tokenizer)
            # The model that answers is another, so that changes of `lm` do not reach it.
            self.task: Any = OwnAnswers(known)
        else:
            known = answering_lm(name)
            self.lm = FrozenLM(known.model, known.tokenizer)
            self.task = OwnNumbers(known, shots=2, k_max=30)

    def run(self, *, seed: int = 5, **changes: Any) -> tuple[Localization, Drawn]:
        """Localize with a few settings changed; return what was found and drawn."""
        settings = small(**{"trainer": {"max_epochs": 2}, **changes})
        with recording() as drawn:
            found = localize(self.lm, self.task, seed=seed, **settings)
        return found, drawn


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[Case, Localization, Drawn]:
    """A case with its run."""
    return known_case(request.param)


@cache
def known_case(name: str) -> tuple[Case, Localization, Drawn]:
    """A case with its run, made once."""
    made = Case(name)
    return made, *made.run()


def same_to_rounding(found: Localization, expected: Localization) -> None:
    """Gates, scores and every outcome of every prompt, and the same answers and heads."""
    torch.testing.assert_close(found.circuit.gates, expected.circuit.gates, **GATES)
    torch.testing.assert_close(found.circuit.scores, expected.circuit.scores, **GATES)
    assert found.circuit.heads == expected.circuit.heads
    same_outcomes(found, expected)


def same_outcomes(
    found: Localization, expected: Localization, splits: tuple[str, ...] = ("seen", "held_out")
) -> None:
    """Every outcome of every prompt that both have."""
    for split in splits:
        own, other = found.verdicts[split].outcomes, expected.verdicts[split].outcomes
        for condition in own.keys() & other.keys():
            for one, two in zip(own[condition], other[condition], strict=False):
                gap = np.abs(one.log_probability - two.log_probability).max()
                assert gap < SCORES, (split, condition, gap)
                assert one.predicted.tolist() == two.predicted.tolist()
                assert one.correct.tolist() == two.correct.tolist()


def few_rows(case: Case) -> dict[str, Any]:
    """As if memory held seven rows of any pass."""
    for kind in ("training", "evaluation", "means", "prefix", "many gate sets", "several gate sets",
                 "many gate vectors"):  # fmt: skip
        case.lm.passes.halve(kind, 14)
    return {}


def hosted(case: Case) -> dict[str, Any]:
    return {"data": replace(small()["data"], cache="host")}


def uncached(case: Case) -> dict[str, Any]:
    return {"data": replace(small()["data"], cache="none")}


@pytest.mark.parametrize("change", [few_rows, hosted, uncached])
def test_how_passes_run_changes_scores_by_rounding_only(
    change: Callable[[Case], dict[str, Any]], case: tuple[Case, Localization, Drawn]
) -> None:
    made, expected, drawn = case
    try:
        found, again = made.run(**change(made))
    finally:
        made.lm.passes = PassSizes()
    assert again == drawn
    same_to_rounding(found, expected)


def test_the_tokenizers_padding_and_truncation_do_not_matter(
    case: tuple[Case, Localization, Drawn],
) -> None:
    made, expected, drawn = case
    tokenizer = made.lm.tokenizer
    assert tokenizer is not None
    before = (tokenizer.padding_side, tokenizer.truncation_side)
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    # As a tokenizer.json may ask for it.
    tokenizer.backend_tokenizer.enable_padding(direction="right", length=40)
    tokenizer.backend_tokenizer.enable_truncation(max_length=4)
    try:
        found, again = made.run()
    finally:
        tokenizer.padding_side, tokenizer.truncation_side = before
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    assert again == drawn
    assert torch.equal(found.circuit.gates, expected.circuit.gates)
    assert _outcomes(found) == _outcomes(expected)


def _outcomes(found: Localization) -> dict[str, list[Any]]:
    return {
        f"{split}/{condition}": [[*map(float, one.log_probability)] for one in outcomes]
        for split, verdict in found.verdicts.items()
        for condition, outcomes in verdict.outcomes.items()
    }


@pytest.mark.parametrize("name", ["planted", "gemma3"])
def test_the_size_of_a_bank_changes_its_members_by_rounding_only(name: str) -> None:
    """As branches (planted), and with a pass for each (gemma3)."""
    made = Case(name)
    gates = {}
    for weights, seeds in (([0.01], 1), ([0.001, 0.01, 0.1], 1), ([0.003, 0.01, 0.02, 0.1], 2)):
        bank = PathSparsity(weights, seeds=seeds)
        found, drawn = made.run(gates=L1Gates(), sparsity=bank)
        gates[len(weights) * seeds] = (drawn, bank.members(5), found.history.values[-1])
    first, members, alone_1A = gates[1]
    for size in (3, 8):
        drawn, all_members, gates_GA = gates[size]
        assert len(gates_GA) == size
        # The recommended circuit may be another, and with it the random sets of its size.
        kept = {key: value for key, value in first.items() if "controls" not in key}
        assert drawn.items() >= kept.items()
        index = all_members.index(members[0])
        torch.testing.assert_close(gates_GA[index], alone_1A.view(-1), **GATES)


# Settings that mean something, and what they leave alone.


def test_the_batch_size_changes_the_gates_and_not_the_prompts(
    case: tuple[Case, Localization, Drawn],
) -> None:
    made, expected, drawn = case
    found, again = made.run(data=replace(small()["data"], batch_size=16))
    for key in drawn:
        # Batches are other ones, and so the circuit that random sets are matched with may be.
        if key.startswith("prompts/"):
            assert again[key] == drawn[key], key
    assert not torch.equal(found.circuit.gates, expected.circuit.gates)
    for split in ("seen", "held_out"):
        for condition in ("full", "off"):
            one, two = (run.verdicts[split].outcomes[condition][0] for run in (found, expected))
            assert one.log_probability.tolist() == two.log_probability.tolist()


PARTS = {
    "no controls": {"verdict": VerdictSettings(random_sets=0)},
    "more controls": {"verdict": VerdictSettings(random_sets=7)},
    "replicates": {"verdict": VerdictSettings(random_sets=3, replicates=1)},
    "greedy": {"verdict": VerdictSettings(random_sets=3, greedy=True, greedy_share=0.5)},
    "more test prompts": {"data": replace(small()["data"], test_prompts=64)},
    "more held-out prompts": {"data": replace(small()["data"], held_out_prompts=64)},
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_the_verdict_do_not_touch_one_another(part: str) -> None:
    made, expected, drawn = known_case("planted")
    found, again = made.run(**PARTS[part])
    other = {"more test prompts": "prompts/test/train",
             "more held-out prompts": "prompts/test/held_out"}.get(part)  # fmt: skip
    for key in drawn.keys() & again.keys():
        assert (again[key] == drawn[key]) == (key != other), key
    assert torch.equal(found.circuit.gates, expected.circuit.gates)
    assert found.circuit.heads == expected.circuit.heads
    splits = {"more test prompts": ("held_out",), "more held-out prompts": ("seen",)}
    same_outcomes(found, expected, splits.get(part, ("seen", "held_out")))


# The process around a run.

KINDS: dict[str, dict[str, Any]] = {
    "resample": {"objective": InPlace("resample"), "trainer": {"max_epochs": 1}},
    "function vector": {
        "objective": FunctionVector(layer=1, prompts_per_task=2),
        "trainer": {"max_epochs": 1},
    },
    "one": {"verdict": VerdictSettings(random_sets=2, replicates=1, greedy=True)},
    "path": {"gates": L1Gates(), "sparsity": PathSparsity([0.01, 0.1], seeds=2)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_global_generators_are_neither_used_nor_moved(kind: str) -> None:
    made = Case("planted")
    found = []
    for number in (11, 12):
        disturb(number)
        before = global_state()
        found.append(made.run(**KINDS[kind]))
        assert global_state() == before
    (one, drawn), (two, again) = found
    assert again == drawn
    assert torch.equal(one.circuit.gates, two.circuit.gates)
    assert _outcomes(one) == _outcomes(two)
    # The second run had the model, its probes and the settings of the first: all figures are equal.
    gone = "time/seconds"
    assert {k: v for k, v in one.metrics.items() if k != gone} == {
        k: v for k, v in two.metrics.items() if k != gone
    }
