"""Which words get which labels: in-context classification with held-out assignments.

An assignment gives label words to categories. A fixed hash puts a share of the (category pair,
label pair) assignments aside; training never sees them, so accuracy on them shows that the labels
are read from the prompt.

Shapes: B prompts, N demonstrations, C classes of a prompt, W words
of a category.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from headloc.bundled.prompts import Batch, PromptWeights, render
from headloc.bundled.vocabulary import LABEL_WORDS, categories


def is_held_out(first: tuple[str, str], second: tuple[str, str], percent: int) -> bool:
    """Whether giving two categories these labels, as (category, label) twice, is held out."""
    text = "|".join(":".join(pair) for pair in sorted((first, second)))
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 100 < percent


@dataclass(frozen=True)
class ClassificationShape:
    """How many classes, how many demonstrations of each, how often the query repeats one."""

    classes: int
    per_label: int
    repeat_share: float = 0.0


@dataclass(frozen=True)
class DenseShape:
    """Many demonstrations of many classes, from ``words`` words a class, drawn with repeats."""

    classes: int
    demonstrations: int
    words: int


@dataclass(frozen=True)
class LabelWeights:
    """Loss weights beside the answer's, and what makes classification easier to learn.

    A label is scored where its class was shown before. With a weight for notes, labels are followed
    by notes: the word's category. In ``named_share`` of the classes the label is the category's own
    name.
    """

    demonstrations: float = 0.0
    structure: float = 0.0
    notes: float | None = None
    named_share: float = 0.0


class Assignments:
    """Draws classification prompts from the training or the held-out assignments."""

    def __init__(self, vocabulary: Mapping[str, int], held_out_percent: int) -> None:
        names = list(categories())
        self._vocabulary = vocabulary
        self._words_CW = torch.tensor(
            [[vocabulary[word] for word in words] for words in categories().values()]
        )
        self._labels = torch.tensor([vocabulary[word] for word in LABEL_WORDS])
        self._names = torch.tensor([vocabulary[f" {name}"] for name in names])
        sizes = (len(names), len(names), len(LABEL_WORDS), len(LABEL_WORDS))
        self._held_out = torch.zeros(sizes, dtype=torch.bool)
        for a, b in permutations(range(len(names)), 2):
            for i, j in permutations(range(len(LABEL_WORDS)), 2):
                first, second = (names[a], LABEL_WORDS[i]), (names[b], LABEL_WORDS[j])
                self._held_out[a, b, i, j] = is_held_out(first, second, held_out_percent)

    def draw(
        self,
        count: int,
        shape: ClassificationShape,
        rng: torch.Generator,
        weights: LabelWeights | None = None,
        *,
        held_out: bool,
    ) -> Batch:
        """``count`` prompts, all from training assignments or all from held-out ones."""
        categories_BC, labels_BC = self._assign(count, shape.classes, rng, held_out=held_out)
        size = shape.per_label
        picked_BCW = self._pick(categories_BC, size + 1, rng)
        order_BN = torch.rand(count, shape.classes * size, generator=rng).argsort(dim=1)
        repeated_B = torch.rand(count, generator=rng) < shape.repeat_share
        query_BC = torch.where(repeated_B[:, None], picked_BCW[..., 0], picked_BCW[..., size])
        query_class_B1 = torch.randint(shape.classes, (count, 1), generator=rng)
        inputs_BN = torch.cat(
            [
                picked_BCW[..., :size].flatten(1).gather(1, order_BN),
                query_BC.gather(1, query_class_B1),
            ],
            dim=1,
        )
        classes_BN = torch.cat([order_BN // size, query_class_B1], dim=1)
        return self._render(inputs_BN, classes_BN, categories_BC, labels_BC, rng, weights)

    def draw_dense(
        self, count: int, shape: DenseShape, rng: torch.Generator, weights: LabelWeights
    ) -> Batch:
        """``count`` training prompts in which words and classes come in any order and number."""
        categories_BC, labels_BC = self._assign(count, shape.classes, rng, held_out=False)
        words_BCW = self._pick(categories_BC, shape.words, rng)
        size = (count, shape.demonstrations + 1)
        classes_BN = torch.randint(shape.classes, size, generator=rng)
        chosen_BN = torch.randint(shape.words, size, generator=rng)
        inputs_BN = words_BCW.flatten(1).gather(1, classes_BN * shape.words + chosen_BN)
        return self._render(inputs_BN, classes_BN, categories_BC, labels_BC, rng, weights)

    def dictionary(self, count: int, entries: int, rng: torch.Generator) -> Batch:
        """Words and their categories, every category scored."""
        rows, columns = self._words_CW.shape
        categories_BN = torch.randint(rows, (count, entries + 1), generator=rng)
        chosen_BN = torch.randint(columns, (count, entries + 1), generator=rng)
        words_BN, names_BN = self._words_CW[categories_BN, chosen_BN], self._names[categories_BN]
        return render(
            words_BN[:, :-1],
            names_BN[:, :-1],
            words_BN[:, -1],
            names_BN[:, -1],
            PromptWeights(torch.ones(count, entries), 0.0),
            self._vocabulary,
        )

    def _render(
        self,
        inputs_BN: Tensor,
        classes_BN: Tensor,
        categories_BC: Tensor,
        labels_BC: Tensor,
        rng: torch.Generator,
        weights: LabelWeights | None,
    ) -> Batch:
        """Prompts whose last column is the query."""
        chosen = weights or LabelWeights()
        named_BC = torch.rand(labels_BC.shape, generator=rng) < chosen.named_share
        given_BC = torch.where(named_BC, self._names[categories_BC], self._labels[labels_BC])
        labels_BN = given_BC.gather(1, classes_BN)
        notes_BN = self._names[categories_BC].gather(1, classes_BN[:, :-1])
        seen_BN = _seen_before(classes_BN, categories_BC.shape[1])[:, :-1]
        return render(
            inputs_BN[:, :-1],
            labels_BN[:, :-1],
            inputs_BN[:, -1],
            labels_BN[:, -1],
            PromptWeights(seen_BN * chosen.demonstrations, chosen.structure, chosen.notes or 0.0),
            self._vocabulary,
            notes_BN=None if chosen.notes is None else notes_BN,
        )

    def _assign(
        self, count: int, classes: int, rng: torch.Generator, *, held_out: bool
    ) -> tuple[Tensor, Tensor]:
        kept: list[tuple[Tensor, Tensor]] = []
        found = 0
        while found < count:
            tries = 2 * count
            categories_BC = torch.rand(tries, len(self._words_CW), generator=rng).argsort(1)
            labels_BC = torch.rand(tries, len(self._labels), generator=rng).argsort(1)
            categories_BC, labels_BC = categories_BC[:, :classes], labels_BC[:, :classes]
            admitted_B = self._any_held_out(categories_BC, labels_BC) == held_out
            kept.append((categories_BC[admitted_B], labels_BC[admitted_B]))
            found += int(admitted_B.sum())
        stacked = [torch.cat(parts)[:count] for parts in zip(*kept, strict=True)]
        return stacked[0], stacked[1]

    def _any_held_out(self, categories_BC: Tensor, labels_BC: Tensor) -> Tensor:
        flags = [
            self._held_out[
                categories_BC[:, a], categories_BC[:, b], labels_BC[:, a], labels_BC[:, b]
            ]
            for a, b in permutations(range(categories_BC.shape[1]), 2)
        ]
        return torch.stack(flags).any(dim=0)

    def _pick(self, categories_BC: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """``count`` distinct words of each prompt's categories, [B, C, count]."""
        words_BCW = self._words_CW[categories_BC]
        order_BCW = torch.rand(words_BCW.shape, generator=rng).argsort(dim=2)
        return words_BCW.gather(2, order_BCW[..., :count])


def _seen_before(classes_BN: Tensor, classes: int) -> Tensor:
    """1 where the demonstration's class already occurred in its prompt, else 0."""
    onehot_BNC = torch.nn.functional.one_hot(classes_BN, classes)
    earlier_BNC = onehot_BNC.cumsum(dim=1) - onehot_BNC
    return (earlier_BNC.gather(2, classes_BN[..., None])[..., 0] > 0).float()
