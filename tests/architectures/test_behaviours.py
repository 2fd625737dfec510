"""One suite over every family: each promise holds, or the family is refused with a reason.

The README's table of support is printed from the same outcomes (`tests/support.py`), so that a cell
cannot say yes where a test fails.
"""

from __future__ import annotations

import re

import pytest

from tests.architectures.behaviour import Behaviour
from tests.architectures.registry import BEHAVIOURS, COLUMNS, outcome
from tests.support import BEGIN, END, PAGE, table
from tests.tiny import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.name)
def test_every_family(behaviour: Behaviour, family: str) -> None:
    found = outcome(behaviour, family)
    expected = behaviour.refused.get(family)
    if expected is None:
        assert found.works, found.refusal
    else:
        assert found.refusal is not None, f"{family} works now: take it off the refused"
        assert re.search(expected, found.refusal), found.refusal


def test_refusals_name_families_that_exist_and_are_few() -> None:
    for behaviour in BEHAVIOURS:
        assert set(behaviour.refused) <= set(FAMILIES)
        assert len(behaviour.refused) < len(FAMILIES) / 2


def test_the_page_holds_the_table_that_the_suite_gives() -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert found == table(), "run python -m tests.support --write"
    assert found.splitlines()[0].count("|") == len(COLUMNS) + 2
