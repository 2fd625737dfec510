"""The benchmark of reading attention compares two ways to the same attention."""

from __future__ import annotations

import pytest

from headloc.bench import head_attention
from headloc.bench.comparisons import Clock
from headloc.bench.settings import BenchSettings
from headloc.bench.shapes import named_shape, random_lm
from headloc.bench.steps import Material, material
from headloc.errors import HeadlocError
from headloc.tasks import AddK


@pytest.fixture(scope="module")
def made() -> Material:
    lm = random_lm(named_shape("llama_tiny"), name="llama_tiny")
    return material(lm, AddK(shots=3), prompts=16, batch_size=8, seed=5)


def test_reading_takes_no_more_memory_for_more_prompts_and_less_than_all_maps(
    made: Material,
) -> None:
    clock = Clock(BenchSettings(repetitions=2, turn_seconds=0.0), 1, lambda line: None)
    time, growth = head_attention.head_attention(made, clock, lambda done, total: None)
    assert (time.name, growth.name) == ("head_attention", "head_attention_growth")
    assert time.inputs["prompts"] == 64
    assert growth.value < 1.1
    assert growth.bar is not None


def test_both_ways_read_the_same_and_a_difference_is_an_error(
    made: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = list(made.lm.layout)[::3]
    rows = made.prompts.batch.rows(slice(0, 6))
    read = head_attention._read(made.lm, rows, chosen, 4)
    assert read == pytest.approx(head_attention._read_all(made.lm, rows, chosen, 4), rel=1e-4)
    maps = head_attention._maps(made.lm, rows, chosen)
    wrong = {layer: attention * 0.5 for layer, attention in maps.items()}
    monkeypatch.setattr(head_attention, "_maps", lambda *args: wrong)
    with pytest.raises(HeadlocError, match="differs by"):
        head_attention._check(made.lm, rows, chosen)
