"""Every behaviour, and the families that are refused: what the tests and the table both run."""

from __future__ import annotations

from functools import cache

from tests.architectures import attribution, blocks, gates, generation, prefixes, saving
from tests.architectures.behaviour import Behaviour, Outcome, attempt
from tests.architectures.scores import towers
from tests.architectures.sources import extraction, source_tokens

NO_BRANCHES = dict.fromkeys(
    ("bloom", "cohere2", "exaone4", "falcon_alibi", "gemma2", "gemma3", "gpt_neo", "gpt_oss",
     "ministral", "mistral", "mpt", "olmo3", "phi3", "starcoder2"),
    "as branches of one row",
)  # fmt: skip
"""Sliding windows, and biases by distance that are made from the mask."""

_SCORES = {
    "codegen": "do not give the model's attention",
    "gptj": "do not give the model's attention",
    "gemma2": "soft cap",
    "gpt_oss": "sinks",
    "deepseek_v2": "quer",
    "deepseek_v3": "quer",
}

_EXPERTS = dict.fromkeys(
    ("deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss", "granitemoe", "mixtral", "olmoe",
     "qwen2_moe", "qwen3_moe"),
    "mixture of experts",
)  # fmt: skip

GATES = "gates, ablation"

BEHAVIOURS = (
    Behaviour("identity", GATES, gates.identity),
    Behaviour("ablation", GATES, gates.ablation),
    Behaviour("gradients", GATES, gates.gradients),
    Behaviour("padding", GATES, gates.padding),
    Behaviour("readings", GATES, gates.readings),
    Behaviour("transplants", GATES, gates.transplants),
    Behaviour("added vectors", GATES, blocks.added_vectors),
    Behaviour("prefix cache", "prefix cache", prefixes.prefix_cache),
    Behaviour("branches", "branches", prefixes.branches, NO_BRANCHES),
    Behaviour("block identity", "feed-forward gates", blocks.block_identity),
    Behaviour("block ablation", "feed-forward gates", blocks.block_ablation),
    Behaviour("generation", "generation", generation.generation),
    Behaviour("saving", "save, load", saving.saving),
    Behaviour("source tokens", "source tokens", source_tokens),
    Behaviour("extraction", "source tokens", extraction),
    Behaviour("towers", "towers", towers, _SCORES),
    Behaviour("attribution", "attribution", attribution.attribution),
    Behaviour("neurons", "neurons", attribution.neurons, _EXPERTS),
)

COLUMNS = tuple(dict.fromkeys(behaviour.column for behaviour in BEHAVIOURS))


@cache
def outcome(behaviour: Behaviour, family: str) -> Outcome:
    """Try a behaviour on a family, once per process."""
    return attempt(behaviour, family)


def works(column: str, family: str) -> bool:
    """Whether every behaviour of a column holds for a family."""
    own = [behaviour for behaviour in BEHAVIOURS if behaviour.column == column]
    return all(outcome(behaviour, family).works for behaviour in own)
