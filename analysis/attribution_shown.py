"""Findings of `attribution.py`: figures and pictures, with tables and sentences put together.

Shapes: N rows, L layers, A heads in flat order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from headloc.evaluation.intervals import Estimate

from . import attribution_pictures as pictures
from . import attribution_tables as tables
from .attribution_circuit import circuit_of_scores
from .attribution_classes import ClassScores, CurvePoint, expected_shared, shared
from .attribution_data import Explained
from .attribution_read import Array, PromptScores
from .attribution_sentences import sentences
from .attribution_source_tables import strip
from .attribution_sources import Sources
from .attribution_text import Texts
from .base import Findings, Picture, Subject
from .resampling import Resamples
from .score_comparison import NOTHING, Ablated

if TYPE_CHECKING:
    from .attribution import Attribution

STRIPS = 6
"""Prompts whose source positions are drawn."""


def findings(
    options: Attribution,
    subject: Subject,
    explained: Explained,
    scores: PromptScores,
    overall: ClassScores,
    classes: Sequence[ClassScores],
    sources: Sources,
    texts: Texts,
    compared: Mapping[str, Ablated],
    curve: Sequence[CurvePoint],
) -> Findings:
    """Put everything together."""
    draws = Resamples(len(explained.batch), subject.seed)
    estimates = _totals(draws, scores)
    rows = _spread(classes, len(explained.batch))
    shares = _overlaps(classes, options.shown, subject, overall)
    scalars = {
        "prompts/asked": float(explained.asked),
        "prompts/explained": float(len(explained.batch)),
        "prompts/known_share": float(explained.known_A.mean()),
        "top_neurons/rescored_share": scores.rescored,
    }
    for key, value in estimates.items():
        scalars |= value.to_metrics(key)
    for key, (count, expected) in shares.items():
        scalars |= {f"shared/{key}": count, f"shared/{key}/expected": expected}
    compared_draws = None
    if compared:
        compared_draws = Resamples(len(compared[NOTHING].log_probability_N), subject.seed)
        for name, entry in compared.items():
            key = f"ablated/{name.replace(' ', '_')}"
            scalars |= compared_draws.mean(entry.reciprocal_rank_N).to_metrics(f"{key}/mrr")
            scalars |= compared_draws.mean(entry.log_probability_N).to_metrics(
                f"{key}/log_probability"
            )
    return Findings(
        scalars,
        tables.all_tables(options, subject, explained, scores, overall, classes, sources, texts,
                          compared, compared_draws, curve, draws, rows),
        _pictures(options, explained, scores, overall, sources, texts, compared, compared_draws,
                  curve, draws, rows),
        sentences(options, explained, scores, overall, classes, sources, texts, compared, curve,
                   estimates, shares, draws),
        circuit_of_scores(subject, scores.heads_NA.mean(0), options.circuit_heads,
                          len(explained.batch)),
    )  # fmt: skip


def _totals(draws: Resamples, scores: PromptScores) -> dict[str, Estimate]:
    attention_N, mlp_N = scores.attention_NL.sum(1), scores.mlp_NL.sum(1)
    gained_N = attention_N + mlp_N
    gained = draws.mean(gained_N)
    # A share of next to nothing means nothing: then there is none.
    shares = {} if gained.low <= tables.LEAST_GAIN else {
        "share/attention": draws.ratio(attention_N, gained_N),
        "share/feed_forward": draws.ratio(mlp_N, gained_N),
    }  # fmt: skip
    found = {
        "log_probability/final": draws.mean(scores.final_N),
        "log_probability/embedding": draws.mean(scores.embedding_N),
        "log_probability/gained": gained,
        **shares,
        "cancellation/blocks": _cancelled(
            draws, np.concatenate([scores.attention_NL, scores.mlp_NL], 1)
        ),
        "cancellation/heads": _cancelled(draws, scores.heads_NA),
    }
    if np.isfinite(scores.up_NL).any():
        up_N, down_N = np.nansum(scores.up_NL, 1), np.nansum(scores.down_NL, 1)
        found["cancellation/neurons"] = draws.of(_lost, up_N, down_N)
    return found


def _cancelled(draws: Resamples, score_NS: Array) -> Estimate:
    up_N, down_N = np.maximum(score_NS, 0).sum(1), np.minimum(score_NS, 0).sum(1)
    return draws.of(_lost, up_N, down_N)


def _lost(up: Array, down: Array) -> Array:
    """Return the share of absolute contributions that contributions of the other sign undo."""
    size = up - down
    return 1 - np.abs(up + down) / np.where(size > 0, size, np.nan)


def _spread(classes: Sequence[ClassScores], count: int) -> list[int]:
    """Return rows to draw, the classes taking turns."""
    queues = [list(one.rows) for one in classes] or [list(range(count))]
    turns = [q[i] for i in range(max(map(len, queues))) for q in queues if i < len(q)]
    return [int(row) for row in turns[:STRIPS]]


def _overlaps(
    classes: Sequence[ClassScores], k: int, subject: Subject, overall: ClassScores
) -> dict[str, tuple[float, float]]:
    """Return how many of the top k two classes share on average, and by chance."""
    if len(classes) < 2:
        return {}
    heads = shared({one.name: one.heads[:k] for one in classes})
    total = subject.lm.layout.total
    found = {"heads": (float(np.mean(list(heads.values()))), expected_shared(k, total))}
    if overall.neurons:
        tops = {one.name: [(n.layer, n.neuron) for n in one.neurons[:k]] for one in classes}
        neurons = tables.neuron_count(subject.lm)
        mean = float(np.mean(list(shared(tops).values())))
        found["neurons"] = (mean, expected_shared(k, neurons))
    return found


def _pictures(
    options: Attribution,
    explained: Explained,
    scores: PromptScores,
    overall: ClassScores,
    sources: Sources,
    texts: Texts,
    compared: Mapping[str, Ablated],
    compared_draws: Resamples | None,
    curve: Sequence[CurvePoint],
    draws: Resamples,
    rows: Sequence[int],
) -> tuple[Picture, ...]:
    lm = explained.lm
    found = [
        Picture(
            "layers",
            "Mean log-probability of the answer as attention and feed-forward blocks "
            "add to the stream one after another, and what each of them adds (95 % interval).",
            partial(pictures.draw_layers, draws, scores),
        ),
        Picture(
            "heads",
            "Mean log-probability increase of every head, in nats.",
            partial(pictures.draw_heads, lm.layout, scores.heads_NA.mean(0)),
        ),
    ]
    if overall.neurons:
        found.append(Picture(
            "neurons", "Feed-forward neurons by mean log-probability increase, with their mean "
            "coefficients and the tokens that these make them promote and suppress.",
            partial(pictures.draw_neurons, draws, overall, texts, options.shown)))  # fmt: skip
    if not scores.reason:
        strips = [strip(explained, sources, row) for row in rows]
        found.append(Picture(
            "sources", f"Where the {len(sources.heads)} chosen heads take the answer from: their "
            "log-probability increase by source token, summed over heads, in nats.",
            partial(pictures.draw_strips, strips)))  # fmt: skip
    if compared and compared_draws is not None:
        found.append(Picture(
            "scores", f"Mean reciprocal rank and log-probability of the answer with each prompt's "
            f"{options.ablated} best feed-forward neurons zeroed, by the score that names them "
            "(95 % intervals).",
            partial(pictures.draw_comparison, compared_draws, compared)))  # fmt: skip
    if curve:
        found.append(Picture(
            "curve", "Log-probability of the answer with the top components of its class zeroed, "
            "chosen on other prompts of the class, beside those of another class and random ones "
            "(95 % intervals).",
            partial(pictures.draw_curve, curve, explained.subject.seed)))  # fmt: skip
    return tuple(found)
