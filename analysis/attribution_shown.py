"""Findings of `attribution.py`: figures and pictures, with tables and sentences put together.

Shapes: N rows, L layers, A heads in flat order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from headloc.evaluation.intervals import Estimate

from . import attribution_pictures as pictures
from . import attribution_tables as tables
from .attribution_circuit import circuit_of_scores
from .attribution_classes import ClassScores, expected_shared, shared
from .attribution_found import Found
from .attribution_read import Array, PromptScores
from .attribution_sentences import sentences
from .attribution_source_tables import strip
from .base import Findings, Picture, Subject
from .resampling import Resamples

if TYPE_CHECKING:
    pass


def findings(found: Found) -> Findings:
    """Put everything together."""
    scores, compared_draws = found.scores, found.compared_draws
    estimates = _totals(found.draws, scores)
    shares = _overlaps(found.classes, found.options.shown, found.subject, found.overall)
    scalars = {
        "prompts/asked": float(found.explained.asked),
        "prompts/explained": float(found.count),
        "prompts/known_share": float(found.explained.known_A.mean()),
        "top_neurons/rescored_share": scores.rescored,
    }
    for key, value in estimates.items():
        scalars |= value.to_metrics(key)
    for key, (count, expected) in shares.items():
        scalars |= {f"shared/{key}": count, f"shared/{key}/expected": expected}
    if compared_draws is not None:
        for name, entry in found.compared.items():
            key = f"ablated/{name.replace(' ', '_')}"
            scalars |= compared_draws.mean(entry.reciprocal_rank_N).to_metrics(f"{key}/mrr")
            scalars |= compared_draws.mean(entry.log_probability_N).to_metrics(
                f"{key}/log_probability"
            )
    circuit = circuit_of_scores(
        found.subject, scores.heads_NA.mean(0), found.options.circuit_heads, found.count
    )
    return Findings(
        scalars,
        tables.all_tables(found),
        _pictures(found),
        sentences(found, estimates, shares),
        circuit,
    )


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


def _pictures(found: Found) -> tuple[Picture, ...]:
    drawn = [
        Picture(
            "layers",
            "Mean log-probability of the answer as attention and feed-forward blocks "
            "add to the stream one after another, and what each of them adds (95 % interval).",
            partial(pictures.draw_layers, found.draws, found.scores),
        ),
        Picture(
            "heads",
            "Mean log-probability increase of every head, in nats.",
            partial(pictures.draw_heads, found.explained.lm.layout, found.scores.heads_NA.mean(0)),
        ),
    ]
    if found.overall.neurons:
        drawn.append(Picture(
            "neurons", "Feed-forward neurons by mean log-probability increase, with their mean "
            "coefficients and the tokens that these make them promote and suppress.",
            partial(pictures.draw_neurons, found.draws, found.overall, found.texts,
                    found.options.shown)))  # fmt: skip
    if not found.scores.reason:
        strips = [strip(found.explained, found.sources, row) for row in found.rows]
        drawn.append(Picture(
            "sources", f"Where the {len(found.sources.heads)} chosen heads take the answer from: "
            "their log-probability increase by source token, summed over heads, in nats.",
            partial(pictures.draw_strips, strips)))  # fmt: skip
    if found.compared and found.compared_draws is not None:
        drawn.append(Picture(
            "scores", f"Mean reciprocal rank and log-probability of the answer with each prompt's "
            f"{found.options.ablated} best feed-forward neurons zeroed, by the score that names "
            "them (95 % intervals).",
            partial(pictures.draw_comparison, found.compared_draws, found.compared)))  # fmt: skip
    if found.curve:
        drawn.append(Picture(
            "curve", "Log-probability of the answer with the top components of its class zeroed, "
            "chosen on other prompts of the class, beside those of another class and random ones "
            "(95 % intervals).",
            partial(pictures.draw_curve, found.curve, found.explained.subject.seed)))  # fmt: skip
    return tuple(drawn)
