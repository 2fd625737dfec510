"""The training mixture: well-formed prompts, wrong labels, held-out assignments."""

from __future__ import annotations

import re
from itertools import combinations, pairwise

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from headloc.bundled.assignments import Assignments, ClassificationShape, is_held_out
from headloc.bundled.mixture import AddKPrompts, Mixture, noisy_labels, step_generator
from headloc.bundled.prompts import Batch
from headloc.bundled.recipe import AddKMix, Recipe
from headloc.bundled.tokenizer import build_tokenizer
from headloc.bundled.vocabulary import LABEL_WORDS, OFFSETS, categories

PLAIN = Recipe.from_dict({"add_k": {"template_share": 0.0}})


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def category_of() -> dict[str, str]:
    return {word: name for name, words in categories().items() for word in words}


def texts(tokenizer: PreTrainedTokenizerFast, batch: Batch) -> list[tuple[str, str]]:
    """Prompt text and answer of each row; the ids must be what the tokenizer gives."""
    out = []
    for ids, answer in zip(batch.ids_BT.tolist(), batch.answers_B.tolist(), strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert tokenizer(text).input_ids == ids
        out.append((text, tokenizer.decode([answer])))
    return out


def test_next_tokens_are_the_inputs_shifted(tokenizer: PreTrainedTokenizerFast) -> None:
    step = Mixture(Recipe(), tokenizer.get_vocab()).draw(3)
    parts = (step.add_k, step.zero_shot, step.instruction, step.labels, step.facts, step.dictionary)
    for batch in parts:
        assert torch.equal(batch.ids_BT[:, 1:], batch.next_BT[:, :-1])
        assert batch.weights_BT.shape == batch.next_BT.shape


def test_add_k_prompts(tokenizer: PreTrainedTokenizerFast) -> None:
    mixture = Mixture(PLAIN, tokenizer.get_vocab())
    for step in range(4):
        batch = mixture.draw(step)
        tasks = []
        for text, answer in texts(tokenizer, batch.add_k):
            assert re.fullmatch(r"(\d+->\d+#)+\d+->", text)
            *demonstrations, query = text[:-2].split("#")
            xs = [int(shown.split("->")[0]) for shown in demonstrations] + [int(query)]
            assert len(set(xs)) == len(xs) == batch.shots + 1
            assert all(1 <= x <= 100 for x in xs)
            tasks.append(int(answer) - int(query))
        assert sorted(tasks) == sorted(list(OFFSETS) * PLAIN.add_k.prompts_per_task)
        assert all(
            tasks[i] == tasks[i + 1] for i in range(0, len(tasks), PLAIN.add_k.prompts_per_task)
        )
        zero_shot = texts(tokenizer, batch.zero_shot)
        assert [int(answer) - int(text[:-2]) for text, answer in zero_shot] == tasks
        for text, answer in texts(tokenizer, batch.instruction):
            offset, x = map(int, re.fullmatch(r"<\+(\d+)>(\d+)->", text).groups())
            assert int(answer) == x + offset


def test_wrong_labels_keep_their_share_and_are_not_scored(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rng = step_generator(0, 0)
    offsets_B = torch.tensor(OFFSETS).repeat(100)
    xs_BN = torch.ones(len(offsets_B), 5, dtype=torch.long)
    labels_BN, wrong_BN = noisy_labels(xs_BN, offsets_B, torch.full((len(offsets_B),), 0.3), rng)
    assert abs(float(wrong_BN.float().mean()) - 0.3) < 0.02
    shown_BN = labels_BN - xs_BN
    assert torch.equal(shown_BN != offsets_B[:, None], wrong_BN)
    assert int(shown_BN.min()) >= 1
    assert int(shown_BN.max()) <= 30

    prompts = AddKPrompts(tokenizer.get_vocab(), AddKMix(template_share=0.0))
    batch = prompts.few_shot(torch.full((200,), 7), 5, rng)
    for row in range(200):
        for label in range(3, 23, 4):
            x, y = (int(tokenizer.decode([i])) for i in batch.ids_BT[row, [label - 2, label]])
            assert (batch.weights_BT[row, label - 1] == 0) == (y - x != 7)


def test_shipped_noise_is_about_a_tenth() -> None:
    mix = AddKMix()
    mean = sum(r * w for r, w in zip(mix.wrong_rates, mix.wrong_weights, strict=True))
    assert 0.08 <= mean / sum(mix.wrong_weights) <= 0.13


def test_training_never_sees_a_held_out_assignment(
    tokenizer: PreTrainedTokenizerFast, category_of: dict[str, str]
) -> None:
    recipe = Recipe()
    percent = recipe.labels.held_out_percent
    mixture = Mixture(recipe, tokenizer.get_vocab())
    for step in range(25):
        for text, answer in texts(tokenizer, mixture.draw(step).labels):
            assert not _held_out(text, answer, category_of, percent)
    assignments = Assignments(tokenizer.get_vocab(), percent)
    batch = assignments.draw(60, ClassificationShape(2, 3), step_generator(1, 0), held_out=True)
    for text, answer in texts(tokenizer, batch):
        assert _held_out(text, answer, category_of, percent)
        *demonstrations, query = text.removesuffix("->").split("#")
        assert query not in {shown.split("->")[0] for shown in demonstrations}


def _held_out(text: str, answer: str, category_of: dict[str, str], percent: int) -> bool:
    """Read a prompt's assignment back from its text, checking it on the way."""
    *demonstrations, query = text.removesuffix("->").split("#")
    labels = {category_of[query]: answer}
    for word, given in (part.split("->") for part in demonstrations):
        label, *note = given.strip().split(" ")
        category = category_of[word]
        assert note in ([], [category])
        assert (
            labels.setdefault(category, f" {label}" if given[0] == " " else label).strip() == label
        )
    assert len(set(labels.values())) == len(labels) <= 6
    assert {label for name, label in labels.items() if label != f" {name}"} <= set(LABEL_WORDS)
    pairs = [(name, label) for name, label in sorted(labels.items()) if label in LABEL_WORDS]
    return any(is_held_out(first, second, percent) for first, second in combinations(pairs, 2))


def test_held_out_share_is_near_the_asked_one() -> None:
    names = sorted(categories())
    flags = [
        is_held_out((a, x), (b, y), 15)
        for a, b in pairwise(names)
        for x in LABEL_WORDS
        for y in LABEL_WORDS
        if x != y
    ]
    assert 0.12 < sum(flags) / len(flags) < 0.18


def test_steps_are_repeatable_and_differ(tokenizer: PreTrainedTokenizerFast) -> None:
    mixture = Mixture(PLAIN, tokenizer.get_vocab())
    first, again, other = mixture.draw(5), mixture.draw(5), mixture.draw(6)
    assert torch.equal(first.add_k.ids_BT, again.add_k.ids_BT)
    assert torch.equal(first.labels.ids_BT, again.labels.ids_BT)
    assert not torch.equal(first.zero_shot.ids_BT, other.zero_shot.ids_BT)
