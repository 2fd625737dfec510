"""Labels of several tokens: read by their last, answered by their first, or refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headloc.analysis.base import NotApplicable
from headloc.analysis.label_flip import LabelFlip
from headloc.analysis.label_prompts import classes_of, label_answers, label_set
from headloc.analysis.prompting import Chunk, label_columns
from headloc.analysis.towers import TowersAnalysis
from headloc.interventions.label_tokens import shown_labels
from headloc.objectives.prompts import encode_examples
from tests.analysis.label_subjects import label_subject
from tests.analysis.subjects import quiet


def test_a_label_of_two_tokens_is_read_at_its_last_and_answered_by_its_first() -> None:
    subject = label_subject("llama", labels=("foo", "bar baz"))
    lm = subject.lm
    examples = subject.examples(6, "test")
    labels = label_set(lm, subject.task, examples[0])
    assert [lm.tokenizer.decode([i]) for i in labels.ids_L.tolist()] == ["foo", "bar"]
    encoded, batch = encode_examples(lm, examples, subject.task.template)
    columns_BN = label_columns(Chunk(slice(0, 6), tuple(examples), encoded, batch, None))
    shown = labels.shown(examples)
    for row, places in enumerate(columns_BN.tolist()):
        words = [lm.tokenizer.decode([batch.ids_BT[row, place]]) for place in places]
        assert [w.strip() for w in words] == [("foo", "baz")[label] for label in shown[row]]
        assert places == [label.column for label in shown_labels(batch)[row]]
    logits_BJV = lm.logits(batch)
    asked = labels.asked(examples)
    found = label_answers(labels, logits_BJV, batch, asked)
    first = logits_BJV[:, 0, labels.ids_L].argmax(-1).numpy()
    assert np.array_equal(found.predicted_B, first)
    hit = logits_BJV.argmax(-1) == batch.target_BJ
    for row, label in enumerate(asked):
        # In the full vocabulary every token of the answer counts.
        assert found.full_B[row] == bool(hit[row, : 1 + label].all())
    TowersAnalysis(prompts=6, random_sets=2, pictured_prompts=2).run(subject, quiet)


def test_labels_of_unequal_length_have_no_comparable_twins() -> None:
    with pytest.raises(NotApplicable, match="numbers of tokens"):
        LabelFlip(prompts=2).run(label_subject("llama", labels=("foo", "bar baz")), quiet)


def test_labels_that_begin_alike_are_refused() -> None:
    subject = label_subject("llama", labels=("foo bar", "foo baz"))
    with pytest.raises(NotApplicable, match="begin with the same token"):
        label_set(subject.lm, subject.task, subject.examples(1, "test")[0])


def test_classes_come_from_the_names_of_tasks() -> None:
    example = label_subject("llama").examples(1, "test")[0]
    named = dict(part.split("=")[::-1] for part in example.task.split(","))
    assert classes_of(example) == named
    assert classes_of(replace(example, task="mine")) == {"foo": "foo", "bar": "bar"}
