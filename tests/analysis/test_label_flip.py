"""Counterbalanced twins, and shares of a change that add up exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headloc.analysis.base import NotApplicable
from headloc.analysis.flip_design import CELLS, counterbalanced, partners
from headloc.analysis.flip_shares import change, paired_columns
from headloc.analysis.label_flip import LabelFlip
from headloc.analysis.label_prompts import label_set
from headloc.analysis.value_outputs import read_outputs
from headloc.objectives.prompts import encode_examples
from tests.analysis.label_subjects import bundled_label_subject, label_subject
from tests.analysis.subjects import quiet, tiny_subject

DOUBLE = torch.float64


def test_shares_add_up_and_tell_attention_from_values() -> None:
    rng = torch.Generator().manual_seed(0)
    a, m, b, w = (torch.randn(5, 7, dtype=DOUBLE, generator=rng) for _ in range(4))
    found = change(a, m, b, w)
    assert torch.allclose(found.total_B, (b * w - a * m).sum(1))
    assert torch.allclose(found.attention_B + found.value_B, found.total_B, atol=1e-12)
    only_attention = change(a, m, b, m)
    assert only_attention.value_B.abs().max() == 0
    only_values = change(a, m, a, w)
    assert only_values.attention_B.abs().max() == 0


def test_label_tokens_are_paired_with_tokens_of_their_label() -> None:
    assert partners([0, 1, 1, 0], [1, 0, 0, 1]) == [1, 0, 3, 2]
    with pytest.raises(NotApplicable, match="multiple of the number of labels"):
        partners([0, 1, 1], [1, 0, 0])
    columns = torch.tensor([[1, 3, 4, 6]])
    index = paired_columns(8, columns, torch.tensor([[1, 0, 3, 2]]))
    assert index.tolist() == [[0, 3, 2, 1, 6, 5, 4, 7]]


def test_cells_balance_labels_over_places_and_queries() -> None:
    subject = bundled_label_subject()
    examples = subject.examples(24, "test")
    cells = counterbalanced(subject, examples)
    assert tuple(cells) == CELLS
    place_of_label = np.zeros((2, 4))
    for pairs in cells.values():
        for drawn, base, twin in zip(examples, pairs.base, pairs.twin, strict=True):
            texts = [d.input for d in base.demonstrations]
            assert texts == [d.input for d in twin.demonstrations]
            assert sorted(texts) == sorted(d.input for d in drawn.demonstrations)
            assert base.query == twin.query
            assert base.query not in texts
            assert base.answer != twin.answer
            for one, two in zip(base.demonstrations, twin.demonstrations, strict=True):
                assert one.output != two.output
            for place, shown in enumerate(base.demonstrations):
                place_of_label[int(shown.output == "bar"), place] += 1
                place_of_label[int(twin.demonstrations[place].output == "bar"), place] += 1
    assert (place_of_label == place_of_label[0, 0]).all()
    asked = [sum(e.answer == "foo" for e in p.base) for p in cells.values()]
    assert asked[0] + asked[2] == asked[1] + asked[3] == len(examples)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_total_is_the_change_of_what_the_heads_write(family: str) -> None:
    subject = label_subject(family)
    found = LabelFlip(prompts=2).run(subject, quiet)
    cells = counterbalanced(subject, subject.examples(2, "label flip"))
    labels = label_set(subject.lm, subject.task, cells[CELLS[0]].base[0])
    totals = []
    for pairs in cells.values():
        asked = labels.asked(pairs.base)
        _, batch = encode_examples(subject.lm, pairs.base, subject.task.template)
        _, other = encode_examples(subject.lm, pairs.twin, subject.task.template)
        one = read_outputs(subject.lm, batch, subject.heads, labels)
        two = read_outputs(subject.lm, other, subject.heads, labels, one.directions_LBD)
        rows = torch.arange(len(asked))
        totals.append([
            float((two.heads[h].written_LB - one.heads[h].written_LB)[asked, rows].mean())
            for h in subject.heads
        ])  # fmt: skip
    for head, total in zip(subject.heads, np.mean(totals, axis=0), strict=True):
        assert found.scalars[f"{head}/change"] == pytest.approx(total, rel=1e-9)
        for pairing in ("by_label", "by_place"):
            shares = [found.scalars[f"{head}/{part}_share_{pairing}"] for part in ("QK", "OV")]
            assert sum(shares) == pytest.approx(1, abs=1e-9)
    for picture in found.pictures:
        assert picture.draw().axes


def test_twins_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(NotApplicable):
        LabelFlip(prompts=4).run(tiny_subject(), quiet)
    with pytest.raises(NotApplicable, match="multiple of the number of labels"):
        LabelFlip(prompts=4).run(label_subject("llama", shots=3), quiet)
