"""The benchmark of the exact search compares two ways to the same neurons."""

from __future__ import annotations

import pytest

from headloc.bench import neurons
from headloc.bench.comparisons import Clock
from headloc.bench.settings import BenchSettings
from headloc.bench.shapes import Shape, named_shape, random_lm
from headloc.bench.steps import material
from headloc.tasks import AddK

SMALL = Shape("llama", 2, 4, 32, 600, {"num_key_value_heads": 2, "intermediate_size": 400})


def test_the_search_is_measured_on_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "_SHAPE", SMALL)
    lm = random_lm(named_shape("llama_tiny"), name="llama_tiny")
    made = material(lm, AddK(shots=2), prompts=8, batch_size=4, seed=5)
    said: list[str] = []
    clock = Clock(BenchSettings(repetitions=2, turn_seconds=0.0), 1, said.append)
    (found,) = neurons.top_neurons(made, clock, lambda done, total: None)
    assert found.name == "top_neurons"
    assert found.inputs["vocabulary"] == 600
    assert found.inputs["neurons"] == 800
    assert neurons.TOP <= found.inputs["rescored"] < 400
    assert found.inputs["largest_difference"] < 1e-5
    assert any("vocabulary of 32,000" in line for line in said)
    monkeypatch.setattr(neurons, "_ENOUGH", lm.vocab_size)
    (own,) = neurons.top_neurons(made, clock, lambda done, total: None)
    assert own.inputs["measured_on"] == lm.source.name
