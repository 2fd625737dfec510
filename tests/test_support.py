"""The README's table of support is what the tiny models say."""

from __future__ import annotations

import pytest

from tests.support import BEGIN, END, FEATURES, README, support, table
from tests.tiny import FAMILIES


@pytest.mark.slow
def test_the_readme_holds_the_table_that_the_models_give() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table()


@pytest.mark.slow
@pytest.mark.parametrize("feature", range(len(FEATURES)), ids=[f.name for f in FEATURES])
def test_every_feature_works_somewhere(feature: int) -> None:
    assert sum(support(family)[feature] for family in FAMILIES) > len(FAMILIES) / 2


def test_gates_work_everywhere() -> None:
    assert all(support(family)[0] for family in FAMILIES[:5])
