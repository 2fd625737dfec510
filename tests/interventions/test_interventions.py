"""The two interventions against what they say, by hand in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from headloc.analysis.reading import read_heads_of
from headloc.analysis.stream_reading import read_parts
from headloc.analysis.unembedding import readout_of
from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.interventions import PositionFree, ValueBoost
from headloc.interventions.base import intervened_logits
from headloc.interventions.label_tokens import minority_weights, shown_labels
from headloc.lm.batch import TokenBatch
from headloc.lm.frozen import FrozenLM
from headloc.lm.projection import output_weights
from headloc.objectives.prompts import encode_examples
from tests.analysis.label_subjects import label_lm, label_subject
from tests.tiny import hook_count, tiny_batch, tiny_lm, tiny_model

DOUBLE = torch.float64
HEADS = (HeadId(0, 1), HeadId(1, 0), HeadId(1, 3))


def _unbalanced(family: str) -> tuple[FrozenLM, TokenBatch, list[list[str]]]:
    subject = label_subject(family)
    examples = [
        replace(e, demonstrations=e.demonstrations[:-1]) for e in subject.examples(4, "test")
    ]
    _, batch = encode_examples(subject.lm, examples, subject.task.template)
    return subject.lm, batch, [[d.output for d in e.demonstrations] for e in examples]


def test_labels_are_found_and_the_rarer_is_weighted() -> None:
    lm, batch, shown = _unbalanced("llama")
    found = shown_labels(batch)
    assert [[lm.tokenizer.decode(list(label.ids)) for label in row] for row in found] == shown
    weights = minority_weights(batch, 0.03)
    for row, labels in enumerate(shown):
        for label, place in zip(labels, found[row], strict=True):
            rare = labels.count(label) < max(labels.count(x) for x in labels)
            assert float(weights[row, place.column]) == pytest.approx(0.06 if rare else 0.0)
    assert float(weights.sum()) == pytest.approx(0.06 * len(shown))
    subject = label_subject("llama")
    _, even = encode_examples(subject.lm, subject.examples(2, "even"), subject.task.template)
    assert minority_weights(even, 0.03).abs().max() == 0


def test_a_weight_is_the_ratio_of_the_counts() -> None:
    subject = label_subject("llama")
    (example,) = subject.examples(1, "counts", shots=6)
    first = example.demonstrations[0].output
    for gone, ratio in ((1, 3 / 2), (2, 3 / 1)):
        kept = [d for d in example.demonstrations if d.output != first]
        rare = [d for d in example.demonstrations if d.output == first][gone:]
        fewer = replace(example, demonstrations=(*kept, *rare))
        _, batch = encode_examples(subject.lm, [fewer], subject.task.template)
        weights = minority_weights(batch, 0.03)
        found = weights[weights > 0].tolist()
        assert found == pytest.approx([0.03 * ratio] * (3 - gone))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "falcon_new"])
def test_value_boost_adds_the_minoritys_vectors_to_the_final_stream(family: str) -> None:
    lm, batch, _ = _unbalanced(family)
    hooks = hook_count(lm.model)
    reading = read_parts(lm, batch)
    weights = minority_weights(batch, 0.03)
    added_BD = torch.zeros(len(batch), lm.width, dtype=DOUBLE)
    for position, read in read_heads_of(lm, batch, HEADS).items():
        for row, head in enumerate(read.heads):
            for b, t in weights.nonzero().tolist():
                vector = read.values_BHTd[b, row, t] @ output_weights(lm, position)[head]
                added_BD[b] += weights[b, t] * read.attention_BHT[b, row, t] * vector
    assert added_BD.norm(dim=-1).max() > 0
    readout = readout_of(lm, reading, batch.target_BJ[:, 0])
    changed = intervened_logits(lm, batch, ValueBoost().on(lm, HEADS))[:, 0]
    # Behind the unfrozen norm: compare with the model's own norm and head on the moved stream.
    moved_BD = (reading.final_BD + added_BD)[:, None]
    norm = next(
        m for n, m in lm.model.named_modules() if n.endswith((".norm", "ln_f", "final_layer_norm"))
    )
    expected = lm.model.get_output_embeddings()(norm(moved_BD))[:, 0]
    assert torch.allclose(changed, expected, atol=1e-5)
    assert (changed - reading.logits_BV).abs().max() > 1e-4
    assert readout.weight_VD.shape[0] == changed.shape[1]
    assert hook_count(lm.model) == hooks


def _unturned(monkeypatch: pytest.MonkeyPatch, lm: FrozenLM) -> None:
    rotary = next(m for n, m in lm.model.named_modules() if n.endswith("rotary_emb"))
    plain = type(rotary).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        cos, sin = plain(self, *args, **kwargs)
        return torch.ones_like(cos), torch.zeros_like(sin)

    monkeypatch.setattr(type(rotary), "forward", forward)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3", "falcon_new"])
def test_position_free_heads_put_out_what_they_would_without_rotation(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm(family, DOUBLE)
    batch = tiny_batch((9, 6), answers=1)
    heads = [HeadId(0, 1), HeadId(0, 2)]
    prepared = PositionFree().on(lm, heads)
    seen: list[Tensor] = []
    projection = lm.model.get_submodule(lm.sites[0].projection)

    def read() -> Tensor:
        # Registered last, so it sees what every tap has done.
        handle = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        lm.logits(batch)
        handle.remove()
        return seen[-1].unflatten(-1, (4, 8))

    with prepared.applied(batch):
        changed_BTHd = read()
    plain_BTHd = read()
    _unturned(monkeypatch, lm)
    unturned_BTHd = read()
    assert torch.allclose(changed_BTHd[:, -1, 1:3], unturned_BTHd[:, -1, 1:3], atol=1e-9)
    assert torch.equal(changed_BTHd[:, :-1], plain_BTHd[:, :-1])
    assert torch.equal(changed_BTHd[:, -1, [0, 3]], plain_BTHd[:, -1, [0, 3]])
    assert (changed_BTHd[:, -1, 1:3] - plain_BTHd[:, -1, 1:3]).abs().max() > 1e-3


def test_position_free_attention_is_blind_to_distance_in_an_alibi_model() -> None:
    """With neither queries nor keys, ALiBi is all there is: without it attention is uniform."""
    model = tiny_model("falcon_alibi", dtype=DOUBLE)
    with torch.no_grad():
        for block in model.transformer.h:
            for tensor in (block.self_attention.query_key_value.weight,
                           block.self_attention.query_key_value.bias):  # fmt: skip
                tensor.view(4, 3, 8, -1)[:, :2] = 0
    lm = FrozenLM(model)
    batch = tiny_batch((7, 7), answers=1)
    read = read_heads_of(lm, batch, [HeadId(0, 0)])[0]
    assert float(read.attention_BHT[0, 0, -1] / read.attention_BHT[0, 0, 0]) > 1.5
    prepared = PositionFree().on(lm, [HeadId(0, 0)])
    seen: list[Tensor] = []
    with prepared.applied(batch):
        projection = lm.model.get_submodule(lm.sites[0].projection)
        handle = projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        lm.logits(batch)
        handle.remove()
    z_BTHd = seen[-1].unflatten(-1, (4, 8))
    assert torch.allclose(z_BTHd[:, -1, 0], read.values_BHTd[:, 0].mean(1), atol=1e-9)


def test_mistakes_are_told() -> None:
    lm = label_lm("llama")
    with pytest.raises(HeadlocError, match="needs heads"):
        PositionFree().on(lm, [])
    with pytest.raises(HeadlocError, match="There is no head L9H0"):
        ValueBoost().on(lm, [HeadId(9, 0)])
    with pytest.raises(HeadlocError, match="factor"):
        ValueBoost(factor=-1.0)
    assert math.isclose(ValueBoost().options()["factor"], 0.03)
