"""Named shapes have the sizes of the models that they are named after."""

from __future__ import annotations

import pytest
import torch

from headloc.bench.shapes import SHAPES, _config, _model, named_shape, random_lm
from headloc.bundled.tokenizer import build_tokenizer
from headloc.errors import HeadlocError

# Parameters of the published checkpoints, in millions.
PUBLISHED = {
    "gpt2_small": 124.4,
    "gpt2_large": 774.0,
    "llama_1b": 1235.8,
    "llama_7b": 6738.4,
    "llama3_8b": 8030.3,
    "qwen25_7b": 7615.6,
    "phi4": 14659.5,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_as_many_parameters_as_its_model(name: str) -> None:
    tokenizer = build_tokenizer()
    config = _config(SHAPES[name], len(tokenizer), tokenizer)
    model = _model(config, 0, torch.bfloat16, torch.device("meta"))
    unique = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert sum(unique.values()) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.1)


def test_a_random_model_follows_from_its_seed_in_any_dtype() -> None:
    shape = named_shape("llama_tiny")
    one, same, other = (random_lm(shape, name="x", seed=seed) for seed in (1, 1, 2))
    assert one.source.fingerprint == same.source.fingerprint != other.source.fingerprint
    half = random_lm(shape, name="x", seed=1, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.source.name == "random/x"


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    random_lm(named_shape("llama_tiny"), name="x")
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_unknown_shape_is_refused_with_the_closest() -> None:
    with pytest.raises(HeadlocError, match="llama3_8b"):
        named_shape("llama3_8B")
