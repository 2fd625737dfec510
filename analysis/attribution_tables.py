"""Tables of `attribution.py`.

Shapes: N rows, L layers, C chosen heads, T columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .attribution_classes import ClassScores, CurvePoint, expected_shared, shared
from .attribution_found import Found
from .attribution_read import PromptScores
from .attribution_source_tables import source_tables
from .attribution_text import Texts
from .base import Subject, Table
from .neurons import neuron_sites, values_of
from .resampling import Resamples
from .score_comparison import Ablated
from .vocabulary import words

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


Rows = list[list[Any]]

LEAST_GAIN = 0.02
"""Gain in nats below which there are no shares of it."""


def neuron_count(lm: FrozenLM) -> int:
    """Return how many feed-forward neurons can be told apart."""
    return sum(len(values_of(lm, site)[0]) for site in neuron_sites(lm) if not site.reason)


def all_tables(found: Found) -> tuple[Table, ...]:
    """Return every table that has rows."""
    subject, scores, texts = found.subject, found.scores, found.texts
    draws, classes, k = found.draws, found.classes, found.options.shown
    made = [
        Table("layers", ("layer", "attention", "attention_low", "attention_high", "attention_share",
                         "feed_forward", "feed_forward_low", "feed_forward_high",
                         "feed_forward_share", "neurons_up", "neurons_down", "attention_promotes",
                         "feed_forward_promotes"), _layers(draws, scores, texts),
              "Mean log-probability increase (nats) of each layer's blocks, their shares of the "
              "whole way from the embedding to the end, first-order terms of the layer's neurons "
              "above and below zero, and tokens that the mean output promotes."),
        Table("heads", ("head", "mean", "low", "high", "positive", "in_circuit", "promotes",
                        "suppresses"), _heads(draws, subject, scores, texts, found.overall),
              "Mean log-probability increase of every head (nats), the share of prompts on which "
              "it is positive, and for chosen heads what their mean output writes."),
        Table("neurons", ("class", "layer", "neuron", "mean", "low", "high", "coefficient",
                          "promotes", "suppresses"),
              _neurons(subject, (found.overall, *classes), texts, k),
              "Feed-forward neurons by mean log-probability increase over the prompts of a class."),
        Table("classes", ("class", "prompts", "log_probability", "attention_share",
                          "feed_forward_share", "heads", "neurons", "heads_cancelled"),
              _classes(subject, scores, classes, k), "Classes one by one."),
        Table("shared", ("what", "class", "other", "shared", "expected"),
              _shared(subject.lm, classes, k), f"How many of the top {k} two classes share, and "
              "how many two random lists would."),
    ]  # fmt: skip
    made += source_tables(subject.lm, found.explained, scores, found.sources, texts, found.rows, k)
    if found.compared_draws is not None:
        made.append(
            Table("scores", ("score", "mrr", "mrr_low", "mrr_high", "probability",
                             "probability_low", "probability_high", "log_probability",
                             "log_probability_low", "log_probability_high", "more_left",
                             "more_left_low", "more_left_high", "n"),
                  _comparison(found.compared_draws, found.compared),
                  f"The answer with each prompt's {found.options.ablated} best neurons zeroed, "
                  "by score; neurons are chosen and zeroed on the same prompt. Last: how much more "
                  "of its log-probability is left than by log-probability increase, paired.")
        )  # fmt: skip
    if found.curve:
        made.append(
            Table("curve", ("what", "arm", "zeroed", "log_probability", "low", "high", "accuracy",
                            "accuracy_low", "accuracy_high", "n"),
                  _curve(found.curve, subject.seed),
                  "Components zeroed that were chosen on the other half of each class's prompts.")
        )  # fmt: skip
    return tuple(table for table in made if table.rows)


def _layers(draws: Resamples, scores: PromptScores, texts: Texts) -> Rows:
    whole_N = scores.attention_NL.sum(1) + scores.mlp_NL.sum(1)
    rows: Rows = []
    for layer in range(scores.mlp_NL.shape[1]):
        cells: list[Any] = [layer]
        for score_NL in (scores.attention_NL, scores.mlp_NL):
            e = draws.mean(score_NL[:, layer])
            cells += [e.value, e.low, e.high, _share(e.value, float(whole_N.mean()))]
        cells += [float(scores.up_NL[:, layer].mean()), float(scores.down_NL[:, layer].mean())]
        cells += [_promoted(texts, "attention", layer), _promoted(texts, "feed_forward", layer)]
        rows.append([None if isinstance(c, float) and not np.isfinite(c) else c for c in cells])
    return rows


def _promoted(texts: Texts, kind: str, layer: int) -> str:
    reading = texts.blocks.get((kind, layer))
    return "" if reading is None else words(reading.top)


def _heads(
    draws: Resamples,
    subject: Subject,
    scores: PromptScores,
    texts: Texts,
    overall: ClassScores,
) -> Rows:
    rows: Rows = []
    for head in overall.heads:
        own_N = scores.heads_NA[:, subject.lm.layout.index(head)]
        e, reading = draws.mean(own_N), texts.heads.get(head)
        rows.append([str(head), e.value, e.low, e.high, float((own_N > 0).mean()),
                     head in subject.heads, "" if reading is None else words(reading.top),
                     "" if reading is None else words(reading.bottom)])  # fmt: skip
    return rows


def _neurons(subject: Subject, classes: Sequence[ClassScores], texts: Texts, k: int) -> Rows:
    rows: Rows = []
    for one in classes:
        draws = Resamples(len(one.rows), subject.seed)
        for n in one.neurons[:k]:
            e, reading = draws.mean(n.scores_n), texts.neurons[one.name, n.layer, n.neuron]
            rows.append([one.name, n.layer, n.neuron, e.value, e.low, e.high,
                         float(n.coefficients_n.mean()), words(reading.top),
                         words(reading.bottom)])  # fmt: skip
    return rows


def _classes(
    subject: Subject, scores: PromptScores, classes: Sequence[ClassScores], k: int
) -> Rows:
    rows: Rows = []
    for one in classes:
        attention = float(scores.attention_NL[one.rows].sum(1).mean())
        mlp = float(scores.mlp_NL[one.rows].sum(1).mean())
        own_nA = scores.heads_NA[one.rows]
        size = float(np.abs(own_nA).sum(1).mean())
        rows.append(
            [one.name, len(one.rows), float(scores.final_N[one.rows].mean()),
             _share(attention, attention + mlp), _share(mlp, attention + mlp),
             " ".join(map(str, one.heads[:k])),
             " ".join(f"L{n.layer}N{n.neuron}" for n in one.neurons[:k]),
             1 - abs(float(own_nA.sum(1).mean())) / size]
        )  # fmt: skip
    return rows


def _shared(lm: FrozenLM, classes: Sequence[ClassScores], k: int) -> Rows:
    tops: dict[str, tuple[dict[str, list[object]], int]] = {
        "heads": ({one.name: list(one.heads[:k]) for one in classes}, lm.layout.total)
    }
    if any(one.neurons for one in classes):
        own: dict[str, list[object]] = {
            one.name: [(n.layer, n.neuron) for n in one.neurons[:k]] for one in classes
        }
        tops["neurons"] = (own, neuron_count(lm))
    return [
        [what, one, other, count, expected_shared(k, total)]
        for what, (lists, total) in tops.items()
        for (one, other), count in shared(lists).items()
    ]


def _comparison(draws: Resamples, compared: Mapping[str, Ablated]) -> Rows:
    rows: Rows = []
    for name, entry in compared.items():
        cells: list[Any] = [name]
        more_N = entry.log_probability_N - compared["log_probability_increase"].log_probability_N
        samples = entry.reciprocal_rank_N, entry.probability_N, entry.log_probability_N, more_N
        for sample in samples:
            e = draws.mean(sample)
            cells += [e.value, e.low, e.high]
        rows.append([*cells, draws.n])
    return rows


def _curve(curve: Sequence[CurvePoint], seed: int) -> Rows:
    rows: Rows = []
    for point in curve:
        draws = Resamples(len(point.correct_n), seed)
        log_p, correct = draws.mean(point.log_probability_n), draws.mean(point.correct_n)
        rows.append([point.what, point.arm, point.count, log_p.value, log_p.low, log_p.high,
                     correct.value, correct.low, correct.high, draws.n])  # fmt: skip
    return rows


def _share(part: float, whole: float) -> float | None:
    """Return a share of the gain, None where next to nothing is gained."""
    return part / whole if whole > LEAST_GAIN else None
