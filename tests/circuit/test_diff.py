"""Comparing circuits: rank correlations against brute force, joint sets, and the command."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headloc import AddK, load_bundled
from headloc.circuit import Circuit
from headloc.circuit.diff import compare, kendall, spearman
from headloc.circuit.joint import JointAccuracy, joint_accuracies, owner
from headloc.cli import main
from headloc.errors import CircuitError
from headloc.heads import HeadId
from headloc.objectives import InPlace
from headloc.reporting.console import Console
from tests.circuit.made import tiny_circuit
from tests.tiny import tiny_lm

# Few different values, so that ties are common.
VECTORS = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=9).map(
    lambda pairs: [list(map(float, column)) for column in zip(*pairs, strict=True)]
)


def kendall_by_hand(a: list[float], b: list[float]) -> float:
    pairs = list(itertools.combinations(range(len(a)), 2))
    products = [(a[i] - a[j]) * (b[i] - b[j]) for i, j in pairs]
    concordant, discordant = sum(p > 0 for p in products), sum(p < 0 for p in products)
    untied = [sum(x[i] != x[j] for i, j in pairs) for x in (a, b)]
    return (concordant - discordant) / math.sqrt(math.prod(untied)) if all(untied) else 0.0


def spearman_by_hand(a: list[float], b: list[float]) -> float:
    def ranks(x: list[float]) -> list[float]:
        # The mean position of a value among all orders in which its equals may stand.
        return [sum(y < v for y in x) + (sum(y == v for y in x) + 1) / 2 for v in x]

    ra, rb = ranks(a), ranks(b)
    ma, mb = sum(ra) / len(ra), sum(rb) / len(rb)
    cov = sum((x - ma) * (y - mb) for x, y in zip(ra, rb, strict=True))
    var = sum((x - ma) ** 2 for x in ra) * sum((y - mb) ** 2 for y in rb)
    return cov / math.sqrt(var) if var > 0 else 0.0


@settings(max_examples=300, deadline=None)
@given(VECTORS)
def test_rank_correlations_are_those_of_their_definitions(vectors: list[list[float]]) -> None:
    a, b = vectors
    assert kendall(torch.tensor(a), torch.tensor(b)) == pytest.approx(kendall_by_hand(a, b))
    assert spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(
        spearman_by_hand(a, b), abs=1e-12
    )


def test_known_values_of_the_correlations() -> None:
    a, b = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    # scipy.stats.kendalltau(a, b).statistic and scipy.stats.spearmanr(a, b).statistic
    assert kendall(a, b) == pytest.approx(0.9128709291752769)
    assert spearman(a, b) == pytest.approx(0.9486832980505138)
    assert kendall(b, -b) == spearman(b, -b) == pytest.approx(-1.0)


def test_circuits_of_other_layers_are_not_compared() -> None:
    circuit = tiny_circuit(tiny_lm("gpt2"))
    other = replace(circuit, model={**circuit.model, "layer_indices": [0, 2]})
    with pytest.raises(CircuitError, match="different shape"):
        compare(circuit, other)


def bundled_pair() -> tuple[Circuit, Circuit]:
    """Two halves of a circuit of the bundled model that share three heads, with zero off-values."""
    lm = load_bundled()
    base = tiny_circuit(lm, off_value="zero")
    every = list(lm.layout)
    task = AddK(shots=5).describe()
    first = replace(base, heads=tuple(every[:40]), task=task)
    return first, replace(first, heads=tuple(every[8:]), seed=1)


def scored(first: Circuit, second: Circuit, mlps: bool = False) -> dict[str, JointAccuracy]:
    lm = load_bundled()
    found = joint_accuracies(
        first, second, lm, AddK(shots=5), InPlace(off_value="zero", loss="kl", mlps=mlps),
        seed=7, prompts=64, stages=Console(quiet=True).stage,
    )  # fmt: skip
    assert {item.split for item in found} == {"train", "held_out"}
    return {item.name: item for item in found if item.split == "train"}


def test_intersection_and_union_are_scored_as_the_circuits_that_they_are() -> None:
    first, second = bundled_pair()
    both = tuple(sorted(set(first.heads) & set(second.heads)))
    either = tuple(sorted(set(first.heads) | set(second.heads)))
    found = scored(first, second)
    assert [found[name].heads for name in ("first", "second", "intersection", "union", "off")] == [
        40, 40, 32, 48, 0,
    ]  # fmt: skip
    alone = scored(replace(first, heads=both), replace(second, heads=either))
    assert found["intersection"].accuracy == alone["first"].accuracy
    assert found["union"].accuracy == alone["second"].accuracy == found["full"].accuracy
    assert found["off"].accuracy.value < 0.1
    assert found["full"].accuracy.value > 0.9
    assert found["full"].accuracy.n == 64


def test_a_circuit_that_gates_no_blocks_keeps_them_all() -> None:
    lm = load_bundled()
    heads, _ = bundled_pair()
    blocks = tiny_circuit(lm, off_value="zero", mlps=True)
    assert owner(heads, blocks) is blocks is owner(blocks, heads)
    found = scored(heads, blocks, mlps=True)
    total = len(lm.mlps)
    kept = len(blocks.mlps or ())
    assert kept < total
    assert found["first"].mlps == found["union"].mlps == total
    assert found["second"].mlps == found["intersection"].mlps == kept


def test_circuits_of_other_weights_are_not_scored_together() -> None:
    first, second = bundled_pair()
    other = replace(second, model={**second.model, "fingerprint": "0"})
    with pytest.raises(CircuitError, match="different weights"):
        scored(first, other)


def test_the_command_prints_and_writes_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = bundled_pair()
    a, b = str(first.save(tmp_path / "a")), str(second.save(tmp_path / "b"))
    target = tmp_path / "diff.json"
    assert main(["circuit", "diff", a, b, "prompts=32", f"output={target}"]) == 0
    out = capsys.readouterr().out
    for text in ("Jaccard index     0.667", "(Spearman)", "(Kendall)", "intersection", "union"):
        assert text in out
    record = json.loads(target.read_text())
    assert record["pairs"][0]["jaccard"] == pytest.approx(32 / 48)
    rows = {(row["name"], row["split"]): row for row in record["accuracy"]}
    assert rows["intersection", "train"]["heads"] == 32
    assert rows["union", "held_out"]["accuracy"]["n"] == 32
    assert {row["seed"] for row in record["accuracy"]} == {1000}
    assert main(["circuit", "diff", a, b, "accuracy=false", f"output={target}"]) == 0
    assert "intersection" not in capsys.readouterr().out
    assert "accuracy" not in json.loads(target.read_text())


def test_the_command_says_why_it_cannot_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    circuit = replace(tiny_circuit(tiny_lm("gpt2")), heads=(HeadId(0, 1),))
    circuit = replace(circuit, model={**circuit.model, "name": "someone/tiny"})
    folder = str(circuit.save(tmp_path / "a"))
    assert main(["circuit", "diff", folder, folder]) == 0
    assert "not scored: 'someone/tiny' is not on this machine" in capsys.readouterr().out
    bundled, _ = bundled_pair()
    untold = str(replace(bundled, task={}).save(tmp_path / "b"))
    assert main(["circuit", "diff", untold, untold, "accuracy=true"]) == 2
    assert "names no task" in capsys.readouterr().err
    for wrong in ("accuracy=maybe", "prompts=0", "prompts=x", "seed=-1"):
        assert main(["circuit", "diff", folder, folder, wrong]) == 2
    assert main(["circuit", "diff", folder, folder, folder, "accuracy=true"]) == 2
    assert main(["circuit", "diff", folder, folder, "seed=1", "seed=2"]) == 2
