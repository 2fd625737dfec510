"""The contract of the tap site, on a tiny random model of every family."""

from __future__ import annotations

import pytest

from headloc.lm.families import FAMILIES as TABLE
from headloc.lm.layout import locate_heads
from tests.tiny import (
    FAMILIES,
    HEADS,
    LAYERS,
    SPECS,
    tiny_lm,
    tiny_model,
)

NOT_STRUCTURAL = {"gpt_neo"}  # its attention module does not know its layer


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_entry_of_the_table_has_a_tiny_model() -> None:
    covered = {spec.model_type for spec in SPECS.values()}
    missing = {name for name in TABLE if name not in covered}
    # The multimodal wrapper of gemma3_text.
    assert missing == {"gemma3"}


def test_layout(family: str) -> None:
    spec, layout = SPECS[family], tiny_lm(family).layout
    found = [(heads.layer, heads.heads, heads.width, heads.kv_heads) for heads in layout.layers]
    assert found == [(layer, HEADS, spec.width, spec.kv_heads) for layer in range(LAYERS)]


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NOT_STRUCTURAL))
def test_the_structural_search_finds_what_the_table_says(family: str) -> None:
    lm, model = tiny_lm(family), tiny_model(family)
    model.config.model_type = "mystery"
    assert locate_heads(model) == lm.sites
