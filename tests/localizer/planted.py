"""A model whose heads that carry the task are known by construction.

All output projections are zero but those of a few heads, so the other heads can be closed without
any effect.  The right answer to a prompt is whatever this model answers: it is right by definition,
and only the planted heads tell one demonstration's prompt from another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch

from headloc.heads import HeadId
from headloc.lm.batch import collate
from headloc.lm.frozen import FrozenLM
from headloc.localizer.module import OptimizerSettings
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.tasks import AddK, Example, encode_all, render
from tests.tasks.zoo import word_level
from tests.tiny import tiny_model

LAYERS, HEADS = 3, 4
PLANTED = (HeadId(0, 2), HeadId(1, 1), HeadId(2, 0))


@cache
def planted_lm(seed: int = 0) -> FrozenLM:
    """A random Llama with three live heads of twelve, and numbers as its only answers."""
    tokenizer = word_level()
    model = tiny_model("llama", seed, vocab_size=len(tokenizer), num_hidden_layers=LAYERS)
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            columns = block.self_attn.o_proj.weight.view(32, HEADS, -1)
            for head in range(HEADS):
                columns[:, head] *= 3.0 if HeadId(layer, head) in PLANTED else 0.0
            block.mlp.down_proj.weight *= 0.5
        answers = torch.zeros(len(tokenizer), dtype=torch.bool)
        answers[tokenizer.convert_tokens_to_ids([str(n) for n in range(10, 40)])] = True
        model.lm_head.weight[~answers] = 0.0
    return FrozenLM(model, tokenizer)


class OwnAnswers(AddK):
    """Demonstrations of add-k, and as the answer what a model itself says."""

    name: ClassVar[str] = "own_answers"

    def __init__(self, lm: FrozenLM, **options: Any) -> None:
        super().__init__(**{"shots": 2, "k_max": 30, **options})
        self.lm = lm

    def draw(self, n: int, rng: np.random.Generator, **options: Any) -> list[Example]:
        """Draw examples and have the model answer them."""
        return self._answered(super().draw(n, rng, **options))

    @torch.no_grad()
    def _answered(self, examples: Sequence[Example]) -> list[Example]:
        rendered = [render(example, self.template) for example in examples]
        encoded = encode_all(self.lm.tokenizer, rendered)
        batch = collate([item.prompt for item in encoded], self.lm.pad_id)
        words = [self.lm.tokenizer.decode([token]) for token in range(len(self.lm.tokenizer))]
        # A model of random weights may well say a space, which is no answer.
        blank_V = torch.tensor([not word.strip() for word in words])
        logits_NV = self.lm.logits(batch)[:, 0, : len(words)]
        said_N = logits_NV.masked_fill(blank_V, -torch.inf).argmax(-1)
        return [
            replace(example, answer=words[token])
            for example, token in zip(examples, said_N.tolist(), strict=True)
        ]


def small(**changes: Any) -> dict[str, Any]:
    """Settings of a run of a second."""
    settings: dict[str, Any] = {
        "data": DataSettings(128, 48, 48, 48, 48, batch_size=32),
        "verdict": VerdictSettings(random_sets=3),
        "trainer": {"max_epochs": 12, "accelerator": "cpu", "enable_progress_bar": False,
                    "enable_model_summary": False},
        "optimizer": OptimizerSettings(lr=0.15),
    }  # fmt: skip
    trainer = {**settings["trainer"], **changes.pop("trainer", {})}
    return {**settings, **changes, "trainer": trainer}
