"""Knock-outs cut what they say and nothing else; probes find what is there."""

from __future__ import annotations

import pytest
import torch

from headloc.analysis.attention_seen import seeing
from headloc.analysis.base import NotApplicable
from headloc.analysis.flow import Flow, layer_windows
from headloc.analysis.flow_edges import EDGES, blocked_edges
from headloc.analysis.knock_out import knocked_out
from headloc.analysis.probes import fit_probe
from headloc.analysis.prompting import Chunk
from headloc.analysis.reading import prompt_only
from headloc.analysis.tower_reading import towers_of
from headloc.analysis.value_maps import value_maps
from headloc.errors import HeadlocError
from headloc.lm.batch import collate
from headloc.lm.taps import read_heads
from headloc.objectives.prompts import encode_examples
from tests.analysis.label_subjects import bundled_label_subject, label_subject
from tests.analysis.subjects import quiet, tiny_subject
from tests.tiny import hook_count, tiny_batch, tiny_lm, tiny_prompt

DOUBLE = torch.float64
FAMILIES = ("llama", "gpt2", "gpt_neox", "phi3", "falcon_new", "falcon_alibi", "gpt_bigcode",
            "opt")  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_that_nobody_may_look_at_tells_nothing(family: str) -> None:
    lm = tiny_lm(family, DOUBLE)
    hooks = hook_count(lm.model)
    prompts = [tiny_prompt(n, 1, seed) for n, seed in ((9, 0), (7, 1))]
    batch = collate(prompts, 0)
    other = collate(prompts, 0)
    column = batch.prompt_columns - 4
    other.ids_BT[:, column] = (other.ids_BT[:, column] + 7) % 50 + 3
    blocked = torch.zeros(2, 9, 9, dtype=torch.bool)
    blocked[:, column + 1 :, column] = True
    with knocked_out(lm, batch, (0, 1), blocked):
        one, two = lm.logits(batch), lm.logits(other)
    assert torch.allclose(one, two, atol=1e-9)
    assert (lm.logits(batch) - lm.logits(other)).abs().max() > 1e-3
    with knocked_out(lm, batch, (1,), blocked):
        assert (lm.logits(batch) - lm.logits(other)).abs().max() > 1e-3
    nothing = torch.zeros_like(blocked)
    with knocked_out(lm, batch, (0, 1), nothing):
        assert torch.allclose(lm.logits(batch), lm.logits(batch), atol=1e-12)
    with knocked_out(lm, batch, (0, 1), nothing):
        same = lm.logits(batch)
    assert torch.allclose(same, lm.logits(batch), atol=1e-9)
    assert hook_count(lm.model) == hooks


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_what_is_left_of_attention_is_renormalised(family: str) -> None:
    lm = tiny_lm(family, DOUBLE)
    batch = prompt_only(tiny_batch((5, 5)))
    blocked = torch.zeros(2, 5, 5, dtype=torch.bool)
    blocked[0, 4, 2] = blocked[1, 4, 3] = True
    towers, maps = towers_of(lm, [0])[0], value_maps(lm, [0])[0]
    with (
        knocked_out(lm, batch, (0,), blocked),
        seeing(lm, [0]) as seen,
        read_heads(lm) as heads,
    ):
        lm.logits(batch)
    score_BHT = towers.scores(seen[0]).total_BHC.masked_fill(blocked[:, None, 4], float("-inf"))
    v_BTKd = maps.values(seen[0].n_BCD)
    v_BTHd = v_BTKd.repeat_interleave(4 // v_BTKd.shape[2], dim=2)
    expected = torch.einsum("bht,bthd->bhd", score_BHT.softmax(-1), v_BTHd)
    assert torch.allclose(heads.z[0][:, -1], expected, atol=1e-9)


def test_edges_join_the_tokens_that_they_name() -> None:
    subject = label_subject("llama")
    examples = tuple(subject.examples(2, "test"))
    encoded, batch = encode_examples(subject.lm, examples, subject.task.template)
    chunk = Chunk(slice(0, 2), examples, encoded, batch, None)
    words = [subject.lm.tokenizer.decode([i]) for i in batch.ids_BT[0].tolist()]
    shown = examples[0].demonstrations

    def pairs(edge: str) -> list[tuple[str, str]]:
        found = blocked_edges(chunk, edge)[0].nonzero().tolist()
        assert all(to > source for to, source in found)
        return [(words[to], words[source]) for to, source in found]

    assert set(pairs(EDGES[0])) == {(x, d.input) for d in shown for x in ("->", d.output)}
    assert len(pairs(EDGES[0])) == 2 * len(shown)
    following = zip(shown[1:], shown[:-1], strict=True)
    assert set(pairs(EDGES[1])) == {(x, b.input) for a, b in following for x in ("->", a.output)}
    assert pairs(EDGES[2]) == [("->", examples[0].query)]
    assert pairs(EDGES[3]) == [("->", d.output) for d in shown]


def test_probes_read_what_is_linear_and_nothing_from_noise() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 10, dtype=DOUBLE, generator=rng)
    for points in (400, 8):
        c = torch.arange(points) % 3
        x = centres[c] + 0.05 * torch.randn(points, 10, dtype=DOUBLE, generator=rng)
        new = torch.arange(90) % 3
        fresh = centres[new] + 0.05 * torch.randn(90, 10, dtype=DOUBLE, generator=rng)
        assert (fit_probe(x, c, 3).predict(fresh) == new).all()
    noise = torch.randn(600, 10, dtype=DOUBLE, generator=rng)
    label = torch.randint(3, (600,), generator=rng)
    hit = fit_probe(noise[:300], label[:300], 3).predict(noise[300:]) == label[300:]
    assert 0.2 < float(hit.double().mean()) < 0.47
    wide = torch.randn(6, 10, dtype=DOUBLE, generator=rng)
    one = fit_probe(wide, torch.arange(6) % 2, 2)
    z = (wide - wide.mean(0)) / wide.std(0, unbiased=False)
    target = torch.nn.functional.one_hot(torch.arange(6) % 2, 2).double() - 0.5
    plain = torch.linalg.solve(z.T @ z + 0.6 * torch.eye(10, dtype=DOUBLE), z.T @ target)
    assert torch.allclose(one.weight_DC, plain, atol=1e-9)


def test_windows_cover_all_layers_once() -> None:
    windows = layer_windows(7, 3)
    parts = [w for name, w in windows.items() if name != "all layers"]
    assert [layer for part in parts for layer in part] == list(range(7))
    assert windows["all layers"] == tuple(range(7))
    assert set(layer_windows(2, 5)) == {"layers 0", "layers 1", "all layers"}


def test_texts_reach_their_labels_in_the_bundled_model() -> None:
    found = Flow(prompts=16, fit_prompts=96, windows=1).run(bundled_label_subject(), quiet)
    scalars = found.scalars
    assert scalars["untouched/accuracy_within_labels"] > 0.9
    own = [v for k, v in scalars.items() if k.startswith("probe/own") and k.count("/") == 2]
    # Before the first layer a label token knows nothing of its text, and later it does.
    assert own[0] < 0.3
    assert max(own) > 0.8
    cut = "labels_to_last_token/all_layers/loss_of_log-odds"
    assert scalars[f"{cut}/low"] > 0
    assert scalars["text_to_its_label/all_layers/loss_of_log-odds"] > 0
    assert found.pictures[0].draw().axes


def test_mistakes_are_told() -> None:
    lm = tiny_lm("llama", DOUBLE)
    batch = tiny_batch((5, 5), answers=1)
    with (
        pytest.raises(HeadlocError, match="looking at itself"),
        knocked_out(lm, batch, (0,), torch.ones(2, 5, 5, dtype=torch.bool)),
    ):
        pass
    with (
        pytest.raises(HeadlocError, match="blocked has shape"),
        knocked_out(lm, batch, (0,), torch.zeros(2, 4, 4, dtype=torch.bool)),
    ):
        pass
    with pytest.raises(NotApplicable):
        Flow(prompts=2).run(tiny_subject(), quiet)
