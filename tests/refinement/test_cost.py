"""The stated cost of a dose scan is what the model is really run on, set-up included."""

from __future__ import annotations

import pytest

from headloc.lm.ledger import TokenLedger
from headloc.objectives import FunctionVector
from headloc.randomness import stream
from headloc.refinement.dose_scan import scan_cost
from tests.localizer.carried import Constant, carried_lm

LAYER = 1


def tokens_of_prompts(objective: FunctionVector, prompts: int) -> tuple[int, int]:
    """Tokens run to make some zero-shot prompts ready, and the columns of such a prompt."""
    lm, ledger = carried_lm(), TokenLedger()
    examples = Constant().draw(prompts, stream(3, "x"), split="train")
    with ledger.counting(lm, "prompts"):
        made = objective.prompt_set(lm, Constant(), examples, seed=0, use="x")
    return ledger.stages["prompts"].forward_tokens, made.batch.prompt_columns


def test_setting_up_costs_a_prefix_and_one_pass_of_the_answer_columns() -> None:
    objective = FunctionVector(layer=LAYER, prompts_per_task=2)
    objective.prepare(carried_lm(), Constant(), seed=0)
    # What is asked of the model once, such as whether it can start at a layer, is asked here.
    tokens_of_prompts(objective, 2)
    (few, columns), (many, same) = (tokens_of_prompts(objective, n) for n in (8, 29))
    assert columns == same == 3

    def stated(prompts: int) -> int:
        return scan_cost(
            heads=4, doses=20, prompts=prompts, prompt_columns=columns, layer=LAYER, layers=3
        ).setup_tokens

    assert many - few == stated(29) - stated(8) == (29 - 8) * 3


@pytest.mark.parametrize(("heads", "answer"), [(33, 1), (230, 2)])
def test_the_published_scans_cost_what_the_readme_says(heads: int, answer: int) -> None:
    cost = scan_cost(
        heads=heads, doses=20, prompts=512, prompt_columns=3, answer_columns=answer, layer=10,
        layers=32,
    )  # fmt: skip
    by_counting = sum(answer for _ in range(heads) for _ in range(21) for _ in range(512))
    assert cost.scan_tokens == by_counting
    assert cost.tokens == by_counting + 512 * (2 + answer)
    assert cost.full_depth_tokens == pytest.approx(512 * (2 + answer) + by_counting * 0.6875)
    if (heads, answer) == (33, 1):
        assert (cost.scan_tokens, cost.setup_tokens) == (354_816, 1_536)
