"""The batched forms give the figures of the plain loops that they are measured against."""

from __future__ import annotations

import pytest
import torch

from headloc.bench.one_at_a_time import Sizes, pairs
from headloc.bench.patching import largest_gap
from headloc.bench.steps import material
from headloc.bundled import load_bundled
from headloc.errors import HeadlocError
from headloc.lm.frozen import FrozenLM
from headloc.tasks import AddK
from tests.localizer.planted import OwnAnswers, planted_lm
from tests.objectives.by_hand import add_k, digit_lm

NAMES = {"activation_patching", "dose_scan", "subset_search", "random_controls"}
SMALL = Sizes(
    aie_prompts=1,
    scan_prompts=3,
    scan_heads=2,
    doses=3,
    subset_prompts=3,
    pool=3,
    control_prompts=3,
    control_heads=2,
    random_sets=3,
    mean_prompts=3,
)


def check(lm: FrozenLM, task: AddK, seed: int = 0) -> dict[str, torch.Tensor]:
    figures = {}
    for name, (fast, slow) in pairs(lm, task, seed, SMALL).items():
        figures[name] = slow()
        assert torch.isfinite(figures[name]).all()
        torch.testing.assert_close(fast(), figures[name], rtol=1e-3, atol=1e-6)
    assert set(figures) == NAMES
    return figures


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mistral"])
def test_both_forms_agree_on_answers_of_several_tokens(family: str) -> None:
    figures = check(digit_lm(family), add_k(k=[1, 9, 30], held_out_k=[9]))
    assert figures["activation_patching"].abs().max() > 1e-5
    assert figures["subset_search"].shape == (2, 8)
    assert figures["random_controls"].shape == (2, 6)
    assert len(figures["subset_search"][1].unique()) > 4
    assert len(figures["random_controls"][1].unique()) > 2


def test_both_forms_agree_on_a_model_that_can_do_its_task() -> None:
    lm = planted_lm()
    figures = check(lm, OwnAnswers(lm, k=[1, 5, 9], held_out_k=[9]))
    assert 0 < figures["subset_search"][0].max() <= 1


def test_both_forms_agree_on_the_bundled_model() -> None:
    figures = check(load_bundled(), AddK(k=[3, 7, 12], held_out_k=[7], shots=5), seed=1)
    assert figures["activation_patching"].abs().max() > 1e-4
    assert figures["dose_scan"].shape == (2, 4)
    assert figures["subset_search"].shape == (2, 8)


def test_forms_that_differ_are_not_compared() -> None:
    made = material(planted_lm(), OwnAnswers(planted_lm()), prompts=4, batch_size=4, seed=0)
    figures = torch.tensor([0.5, 0.25])
    assert largest_gap(made, "a", figures + 1e-5, figures) == pytest.approx(1e-5, rel=1e-2)
    for wrong in (figures + 0.01, figures[:1], figures * float("nan")):
        with pytest.raises(HeadlocError, match="cannot be compared"):
            largest_gap(made, "a", wrong, figures)
