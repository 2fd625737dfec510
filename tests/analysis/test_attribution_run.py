"""`analysis=attribution` as a whole: facts, single prompts, few-shot tasks, circuits, mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headloc.analysis.attribution import Attribution
from headloc.analysis.attribution_classes import halves_of
from headloc.analysis.base import Findings, NotApplicable, Subject
from headloc.analysis.neuron_ablation import outcome, zeroed_neurons
from headloc.analysis.saving import save_findings
from headloc.circuit import Circuit
from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.objectives.prompts import encode_examples
from headloc.tasks import Example, Facts, TaskFamily
from tests.analysis.subjects import bundled_lm, circuit_of, quiet, tiny_subject
from tests.commands.conftest import headloc  # noqa: F401
from tests.commands.runs import Headloc

SMALL: dict[str, Any] = {
    "queries": 2, "shown": 3, "candidates": 12, "comparison": 6, "random_sets": 2,
    "neuron_counts": (0, 3), "head_counts": (0, 2), "rows_per_pass": 5, "top": 8,
}  # fmt: skip


def bundled(task: TaskFamily, heads: tuple[HeadId, ...] = ()) -> Subject:
    return Subject(circuit_of(bundled_lm(), task, heads), bundled_lm(), task, seed=3)


@cache
def on_facts() -> tuple[Subject, Findings]:
    subject = bundled(Facts(relations=["capital", "continent"], max_items=5), (HeadId(5, 0),))
    return subject, Attribution(**SMALL).run(subject, quiet)


def table(found: Findings, name: str) -> list[dict[str, Any]]:
    one = next(t for t in found.tables if t.name == name)
    return [dict(zip(one.columns, row, strict=True)) for row in one.rows]


def test_layers_telescope_to_the_model_s_own_log_probability() -> None:
    subject, found = on_facts()
    gained = sum(row["attention"] + row["feed_forward"] for row in table(found, "layers"))
    start, end = (found.scalars[f"log_probability/{k}"] for k in ("embedding", "final"))
    assert end - start == pytest.approx(gained, abs=1e-4)
    assert isinstance(subject.task, Facts)
    examples = [
        Example(task, (), pair.input, pair.output)
        for task in subject.task.train
        for pair in subject.task._pairs(task, "all")
    ]
    _, batch = encode_examples(subject.lm, examples, subject.task.template)
    own = outcome(subject.lm, batch)
    known = own.rank_B == 1
    assert end == pytest.approx(float(own.log_probability_B[known].mean()), abs=1e-4)
    assert found.scalars["prompts/explained"] == int(known.sum())
    shares = [found.scalars[f"share/{k}"] for k in ("attention", "feed_forward")]
    assert sum(shares) == pytest.approx(1)
    for row in table(found, "classes"):
        assert row["attention_share"] + row["feed_forward_share"] == pytest.approx(1)


def test_tables_tell_of_the_circuit_of_sources_and_of_both_subkeys() -> None:
    subject, found = on_facts()
    heads = table(found, "heads")
    assert len(heads) == subject.lm.layout.total
    assert [row["head"] for row in heads if row["in_circuit"]] == ["L5H0"]
    means = [row["mean"] for row in heads]
    assert means == sorted(means, reverse=True)
    # The circuit's head is read even where it is not among the best.
    assert "L5H0" in {row["head"] for row in table(found, "sources")}
    assert {row["tokens"] for row in table(found, "sources")} >= {"subject", "last token"}
    attention: dict[str, float] = {}
    for row in table(found, "sources"):
        attention[row["head"]] = attention.get(row["head"], 0.0) + row["attention"]
    assert all(total == pytest.approx(1, abs=1e-4) for total in attention.values())
    kinds = {row["subkey"] for row in table(found, "query_neurons")}
    assert kinds == {"gate", "up", "attention value"}
    assert all(row["layer"] < 5 for row in table(found, "query_neurons"))
    assert {row["class"] for row in table(found, "neurons")} == {"all", "capital", "continent"}
    (pair,) = (row for row in table(found, "shared") if row["what"] == "neurons")
    tops = [
        {(r["layer"], r["neuron"]) for r in table(found, "neurons") if r["class"] == name}
        for name in ("capital", "continent")
    ]
    assert pair["shared"] == len(tops[0] & tops[1])


def test_class_means_are_exact_and_ablations_are_on_other_prompts() -> None:
    subject, found = on_facts()
    task = subject.task
    one = Attribution(**{**SMALL, "neuron_counts": (), "head_counts": (), "comparison": 0})
    alone = replace(subject, task=Facts(relations=["capital"], max_items=5))
    again = table(one.run(alone, quiet), "neurons")
    both = [row for row in table(found, "neurons") if row["class"] == "capital"]
    own = [row for row in again if row["class"] == "capital"]
    # Read in other chunks, so to rounding.
    for row, other in zip(both, own, strict=True):
        assert (row["layer"], row["neuron"]) == (other["layer"], other["neuron"])
        assert row["mean"] == pytest.approx(other["mean"], rel=1e-4, abs=1e-6)
    curve = table(found, "curve")
    at_zero = {row["log_probability"] for row in curve if row["zeroed"] == 0}
    assert max(at_zero) - min(at_zero) < 1e-9
    fit, scored = halves_of({"x": np.arange(7)})["x"]
    assert not set(fit) & set(scored)
    assert curve[0]["n"] == sum(len(range(5)[1::2]) for _ in task.train)


def test_the_comparison_is_the_ablation_that_it_says() -> None:
    subject, found = on_facts()
    scores = {row["score"]: row for row in table(found, "scores")}
    assert len(scores) == 10
    assert scores["nothing"]["mrr"] == 1
    assert scores["log_probability_increase"]["log_probability"] < -1e-3
    single = Attribution(**{**SMALL, "prompt": "The capital of France is", "ablated": 3})
    explained = single.run(subject, quiet)
    top = table(explained, "neurons")[:3]
    _, batch = encode_examples(
        subject.lm, [Example("x", (), "The capital of France is", " Paris")], subject.task.template
    )
    chosen = [[(row["layer"], row["neuron"]) for row in top]]
    with zeroed_neurons(subject.lm, chosen), torch.no_grad():
        expected = float(outcome(subject.lm, batch).log_probability_B)
    compared = {row["score"]: row for row in table(explained, "scores")}
    assert compared["log_probability_increase"]["log_probability"] == pytest.approx(expected)
    assert {row["answer"] for row in table(explained, "strips")} == {" Paris"}


def test_the_circuit_that_is_found_is_saved_and_fits_the_model(tmp_path: Path) -> None:
    subject, found = on_facts()
    folder = save_findings(Attribution(**SMALL), subject, found, tmp_path)
    circuit = Circuit.load(folder / "circuit")
    circuit.check_model(subject.lm)
    best = [row["head"] for row in table(found, "heads")][: len(circuit.heads)]
    assert sorted(best) == sorted(map(str, circuit.heads))
    assert circuit.task["family"] == "facts"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ablated/random_neurons/mrr/n"] == 6


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral"])
def test_other_families_are_explained_and_experts_are_told_of(family: str) -> None:
    options = {**SMALL, "prompts": 6, "answer_tokens": 2, "known_only": False}
    found = Attribution(**options).run(tiny_subject(family, k_max=2, held_out_k=[]), quiet)
    names = {one.name for one in found.tables}
    assert {"layers", "heads", "sources", "curve"} <= names
    said = " ".join(found.sentences)
    if family == "mixtral":
        assert not {"neurons", "scores", "query_neurons"} & names
        assert "mixture of experts" in said
    else:
        assert {"neurons", "scores", "query_neurons", "head_reads"} <= names
    for picture in found.pictures:
        assert picture.draw().axes


def test_padding_is_no_source_and_chunks_do_not_matter() -> None:
    # Prompts of unequal length; one row a pass against several.
    task = Facts(relations=["language", "continent"], max_items=3)
    options = {**SMALL, "comparison": 0, "head_counts": (), "neuron_counts": ()}
    several = Attribution(**options).run(bundled(task), quiet)
    single = Attribution(**{**options, "memory": 1e-9}).run(bundled(task), quiet)
    for key, value in several.scalars.items():
        if not key.startswith("top_neurons"):
            assert single.scalars[key] == pytest.approx(value, rel=1e-3, abs=1e-5)
    assert "padding" not in {row["source"] for row in table(several, "attention_neurons")}
    sums: dict[int, float] = {}
    for row in table(several, "strips"):
        sums[row["prompt"]] = sums.get(row["prompt"], 0.0) + row["increase"]
    assert len(sums) == 6
    assert all(value != 0 for value in sums.values())


def test_what_the_model_does_not_know_is_left_out_or_refused() -> None:
    subject = bundled(Facts(max_items=2))
    wrong = Attribution(**SMALL, prompt="The capital of France is", target=" Berlin")
    with pytest.raises(NotApplicable, match="answers none of the 1 prompts"):
        wrong.run(subject, quiet)
    found = replace(wrong, known_only=False).run(subject, quiet)
    assert found.scalars["log_probability/final"] < -1
    for options, message in (
        ({"target": "x"}, "belongs to analysis.prompt"),
        ({"top": 0}, "analysis.top=0"),
        ({"memory": 0.0}, "must be above 0"),
        ({"head_counts": (1, -2)}, "whole numbers"),
    ):
        with pytest.raises(HeadlocError, match=message):
            Attribution(**options)


def test_without_a_circuit_the_bundled_facts_are_explained(
    headloc: Headloc,  # noqa: F811
    tmp_path: Path,
) -> None:
    found = headloc(
        "analyze", "analysis=attribution", "logger=none", "output_dir=out", "analysis.prompts=4",
        "analysis.comparison=0", "analysis.neuron_counts=[]", "analysis.head_counts=[]",
        "analysis.queries=1",
    )  # fmt: skip
    assert found.status == 0, found.err
    described = json.loads((tmp_path / "out/findings/attribution/findings.json").read_text())
    assert described["task"]["family"] == "facts"
    assert described["heads"] == []
    assert "What <code>" in (tmp_path / "out" / "report.html").read_text()
    missing = headloc("analyze", "analysis=subspaces", "logger=none")
    assert missing.status == 2
    assert "holds no heads" in missing.err
