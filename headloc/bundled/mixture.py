"""The training mixture: what the bundled model sees in one step.

Each step's batch depends on the seed and the step alone, so a resumed run sees the same data as an
uninterrupted one.

Shapes: B prompts, N demonstrations, T positions, K tasks, P prompts of a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headloc.bundled.assignments import (
    Assignments,
    ClassificationShape,
    DenseShape,
    LabelWeights,
)
from headloc.bundled.prompts import (
    ARROW_TEMPLATE,
    RARE_TEMPLATES,
    Batch,
    PromptWeights,
    Template,
    render,
)
from headloc.bundled.recipe import AddKMix, Recipe
from headloc.bundled.tokenizer import BOS, EOS, PAD, pieces
from headloc.bundled.vocabulary import OFFSETS, X_MAX, X_MIN, Fact, facts, instruction_token

#: A step's generator is seeded by ``seed * stride + step``: more steps than any run takes.
_SEED_STRIDE = 10_000_019


@dataclass(frozen=True)
class StepBatch:
    """One step: ``add_k`` holds the tasks one after another, ``prompts_per_task`` rows each.

    ``zero_shot`` has fresh queries of the same tasks in the same order.
    """

    add_k: Batch
    zero_shot: Batch
    instruction: Batch
    labels: Batch
    facts: Batch
    dictionary: Batch
    shots: int


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random stream of one step."""
    return torch.Generator().manual_seed(seed * _SEED_STRIDE + step)


class Mixture:
    """Draws training batches by a recipe."""

    def __init__(self, recipe: Recipe, vocabulary: Mapping[str, int]) -> None:
        self._recipe = recipe
        self._vocabulary = vocabulary
        self._add_k = AddKPrompts(vocabulary, recipe.add_k)
        self._assignments = Assignments(vocabulary, recipe.labels.held_out_percent)
        self._facts = fact_batch(facts(), vocabulary, recipe.facts.context_weight)

    def draw(self, step: int) -> StepBatch:
        """The batch of one step."""
        rng = step_generator(self._recipe.seed, step)
        mix = self._recipe.add_k
        shots = 1 + int(torch.multinomial(_weights(mix.shot_weights), 1, generator=rng))
        offsets = torch.tensor(OFFSETS)[torch.randperm(len(OFFSETS), generator=rng)[: mix.tasks]]
        offsets_B = offsets.repeat_interleave(mix.prompts_per_task)
        instructed = torch.randint(len(OFFSETS), (mix.instruction_prompts,), generator=rng)
        return StepBatch(
            add_k=self._add_k.few_shot(offsets_B, shots, rng),
            zero_shot=self._add_k.zero_shot(offsets_B, rng),
            instruction=self._add_k.instructed(torch.tensor(OFFSETS)[instructed], rng),
            labels=self._draw_labels(rng),
            facts=_sample(self._facts, self._recipe.facts.sentences, rng),
            dictionary=self._draw_dictionary(rng),
            shots=shots,
        )

    def _draw_labels(self, rng: torch.Generator) -> Batch:
        mix = self._recipe.labels
        dense, noted, named, three = torch.rand(4, generator=rng).tolist()
        weights = LabelWeights(
            mix.demonstration_weight,
            mix.structure_weight,
            mix.note_weight if noted < mix.noted_share else None,
            mix.named_share if named < mix.named_steps else 0.0,
        )
        if dense < mix.dense_share:
            chosen = int(torch.randint(len(mix.dense_classes), (), generator=rng))
            classes = mix.dense_classes[chosen]
            crowded = DenseShape(classes, mix.dense_demonstrations, mix.dense_words)
            return self._assignments.draw_dense(mix.dense_prompts, crowded, rng, weights)
        per_label = torch.randint(mix.min_per_label, mix.max_per_label + 1, (), generator=rng)
        classes = 3 if three < mix.three_class_share else 2
        shape = ClassificationShape(classes, int(per_label), mix.repeat_share)
        return self._assignments.draw(mix.prompts, shape, rng, weights, held_out=False)

    def _draw_dictionary(self, rng: torch.Generator) -> Batch:
        mix = self._recipe.dictionary
        entries = int(torch.randint(mix.max_entries + 1, (), generator=rng))
        return self._assignments.dictionary(mix.prompts, entries, rng)


class AddKPrompts:
    """Add-k prompts: y = x + k, x distinct within a prompt, some labels of another offset."""

    def __init__(self, vocabulary: Mapping[str, int], mix: AddKMix) -> None:
        self._vocabulary = vocabulary
        self._mix = mix
        highest = X_MAX + max(OFFSETS)
        self._number = torch.tensor([vocabulary[str(value)] for value in range(highest + 1)])
        self._instruction = torch.tensor(
            [vocabulary[instruction_token(offset)] for offset in range(1, max(OFFSETS) + 1)]
        )

    def few_shot(
        self,
        offsets_B: Tensor,
        shots: int,
        rng: torch.Generator,
        template: Template = ARROW_TEMPLATE,
    ) -> Batch:
        """Training prompts: mixed shares of wrong labels, sometimes another template."""
        mix = self._mix
        if float(torch.rand((), generator=rng)) < mix.template_share:
            template = RARE_TEMPLATES[int(torch.randint(len(RARE_TEMPLATES), (), generator=rng))]
        kinds_B = torch.multinomial(
            _weights(mix.wrong_weights), len(offsets_B), replacement=True, generator=rng
        )
        rates_B = torch.tensor(mix.wrong_rates)[kinds_B]
        xs_BN = distinct_numbers(len(offsets_B), shots + 1, rng)
        labels_BN, wrong_BN = noisy_labels(xs_BN[:, :-1], offsets_B, rates_B, rng)
        weights_BN = torch.full(wrong_BN.shape, mix.demonstration_weight)
        weights_BN[:, 0] = mix.first_label_weight
        weights = PromptWeights(weights_BN.masked_fill(wrong_BN, 0.0), mix.structure_weight)
        return render(
            self._number[xs_BN[:, :-1]],
            self._number[labels_BN],
            self._number[xs_BN[:, -1]],
            self._number[xs_BN[:, -1] + offsets_B],
            weights,
            self._vocabulary,
            template,
        )

    def scored(
        self,
        offsets_B: Tensor,
        shots: int,
        wrong_rate: float,
        rng: torch.Generator,
        template: Template = ARROW_TEMPLATE,
    ) -> Batch:
        """Prompts to measure on: one share of wrong labels, one template, the answer scored."""
        plain = replace(
            self._mix,
            wrong_rates=(wrong_rate,),
            wrong_weights=(1.0,),
            template_share=0.0,
            first_label_weight=0.0,
            demonstration_weight=0.0,
            structure_weight=0.0,
        )
        return AddKPrompts(self._vocabulary, plain).few_shot(offsets_B, shots, rng, template)

    def zero_shot(self, offsets_B: Tensor, rng: torch.Generator) -> Batch:
        """The bare query ``<bos>{x}->``."""
        xs_B = torch.randint(X_MIN, X_MAX + 1, (len(offsets_B),), generator=rng)
        nothing = torch.zeros(len(offsets_B), 0)
        return render(
            nothing.long(),
            nothing.long(),
            self._number[xs_B],
            self._number[xs_B + offsets_B],
            PromptWeights(nothing, 0.0),
            self._vocabulary,
        )

    def instructed(self, offsets_B: Tensor, rng: torch.Generator) -> Batch:
        """The task stated by one token: ``<bos><+k>{x}->``."""
        bare = self.zero_shot(offsets_B, rng)
        token_B = self._instruction[offsets_B - 1]
        ids_BT = torch.cat([bare.ids_BT[:, :1], token_B[:, None], bare.ids_BT[:, 1:]], dim=1)
        next_BT = torch.cat([token_B[:, None], bare.next_BT], dim=1)
        weights_BT = torch.cat([torch.zeros(len(offsets_B), 1), bare.weights_BT], dim=1)
        return Batch(ids_BT, next_BT, weights_BT)


def _sample(source: Batch, count: int, rng: torch.Generator) -> Batch:
    rows = torch.randperm(len(source.ids_BT), generator=rng)[:count]
    return Batch(source.ids_BT[rows], source.next_BT[rows], source.weights_BT[rows])


def _weights(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float)


def distinct_numbers(rows: int, count: int, rng: torch.Generator) -> Tensor:
    """``count`` distinct values of x in each row."""
    order = torch.rand(rows, X_MAX - X_MIN + 1, generator=rng).argsort(dim=1)
    return order[:, :count] + X_MIN


def noisy_labels(
    xs_BN: Tensor, offsets_B: Tensor, rates_B: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Labels x + k, some replaced by x + k' with k' another offset; and which are replaced."""
    wrong_BN = torch.rand(xs_BN.shape, generator=rng) < rates_B[:, None]
    shift_BN = torch.randint(1, len(OFFSETS), xs_BN.shape, generator=rng)
    other_BN = (offsets_B[:, None] - 1 + shift_BN) % len(OFFSETS) + 1
    return xs_BN + torch.where(wrong_BN, other_BN, offsets_B[:, None]), wrong_BN


def fact_batch(
    statements: tuple[Fact, ...], vocabulary: Mapping[str, int], context_weight: float
) -> Batch:
    """The sentences padded on the right, the answer token with weight one."""
    rows = []
    for fact in statements:
        tokens = [BOS, *pieces(fact.sentence), EOS]
        answer = 1 + len(pieces(fact.prompt))
        weights = [1.0 if at == answer else context_weight for at in range(len(tokens))]
        rows.append(([vocabulary[token] for token in tokens], weights))
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [vocabulary[PAD]] * (longest - len(ids)) for ids, _ in rows])
    weights_BT = torch.tensor([w + [0.0] * (longest - len(w)) for _, w in rows])
    return Batch(ids_BT[:, :-1], ids_BT[:, 1:], weights_BT[:, 1:])
