"""Add-k whose answers are what a model says, so that a model with random weights can do it.

A localization refuses a model that answers nothing correctly.  What it costs does not depend on
what the right answer is, so here the right answer is the model's own.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from headloc.lm.batch import collate
from headloc.lm.frozen import FrozenLM
from headloc.objectives.prompts import chunks
from headloc.tasks import AddK, Example, encode_all, render


class OwnAnswers(AddK):
    """Demonstrations of add-k, and as the answer what a model says to them.

    Args:
        lm: the model that answers (see `answering_with_numbers`).
        options: of `AddK`.
    """

    name: ClassVar[str] = "own_answers"

    def __init__(self, lm: FrozenLM, **options: Any) -> None:
        super().__init__(**options)
        self._lm = lm

    def draw(self, n: int, rng: np.random.Generator, **options: Any) -> list[Example]:
        """Draw examples and have the model answer them."""
        examples = super().draw(n, rng, **options)
        answered = [self._answered(examples[part]) for part in chunks(len(examples))]
        return [example for part in answered for example in part]

    @torch.no_grad()
    def _answered(self, examples: Sequence[Example]) -> list[Example]:
        lm = self._lm
        tokenizer = lm.tokenizer
        encoded = encode_all(tokenizer, [render(example, self.template) for example in examples])
        batch = collate([item.prompt for item in encoded], lm.pad_id)
        said = lm.logits(batch)[:, 0].argmax(-1).tolist()
        words = [tokenizer.decode([token]) for token in said]  # type: ignore[union-attr]
        return [
            replace(example, answer=word) for example, word in zip(examples, words, strict=True)
        ]


@torch.no_grad()
def answering_with_numbers(lm: FrozenLM) -> FrozenLM:
    """Leave a random model no answers but whole numbers: other rows of its last layer become zero.

    The model is changed in place and returned.
    """
    tokenizer = lm.tokenizer
    words = [str(number) for number in range(200)]
    numbers = tokenizer.convert_tokens_to_ids(words)  # type: ignore[union-attr]
    weight_VD = lm.model.get_output_embeddings().weight
    kept_VD = weight_VD[numbers].clone()
    weight_VD.zero_()
    weight_VD[numbers] = kept_VD
    return lm
