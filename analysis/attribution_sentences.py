"""What `attribution.py` has found, in sentences with figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from headloc.evaluation.intervals import Estimate
from headloc.reporting.text import plural

from .attribution_classes import CurvePoint
from .attribution_data import Explained
from .attribution_found import Found
from .attribution_read import PromptScores
from .attribution_source_tables import group_means
from .attribution_sources import Sources
from .resampling import Resamples
from .score_comparison import NOTHING, RANDOM, Ablated, order_by
from .vocabulary import words

if TYPE_CHECKING:
    from .attribution import Attribution


def sentences(
    found: Found,
    estimates: Mapping[str, Estimate],
    shares: Mapping[str, tuple[float, float]],
) -> tuple[str, ...]:
    """Tell what is found, the most important first.

    Args:
        found: what was measured.
        estimates: figures over all prompts.
        shares: components that two classes share, and how many they would by chance.
    """
    options, explained, scores, sources = (
        found.options,
        found.explained,
        found.scores,
        found.sources,
    )
    overall, classes, draws = found.overall, found.classes, found.draws
    heads = scores.heads_NA.mean(0)
    best = [f"{h} ({heads[explained.lm.layout.index(h)]:+.2f})" for h in overall.heads[:5]]
    layer = int(np.argmax(scores.mlp_NL.mean(0)))
    told = [
        f"{found.count} of {explained.asked} prompts are explained"
        + (" (those that the model answers correctly)." if options.known_only else "."),
        f"The answer's log-probability goes from {estimates['log_probability/embedding']} nats in "
        f"the embedding to {estimates['log_probability/final']} at the end (n = {found.count}). "
        + _shares_said(estimates),
        f"The feed-forward block of layer {layer} adds the most of all such blocks, "
        f"{draws.mean(scores.mlp_NL[:, layer])} nats.",
        f"The heads that raise it the most: {', '.join(best)} nats.",
    ]
    if overall.neurons:
        top = overall.neurons[0]
        reading = found.texts.neurons["all", top.layer, top.neuron]
        told.append(
            f"The neuron that raises it the most is {top.neuron} of layer {top.layer}, by "
            f"{draws.mean(top.scores_n)} nats; it promotes {words(reading.top[:4])}. The "
            f"exact search rescored {scores.rescored:.1%} of the neurons."
        )
    every = {example.task for example in explained.examples}
    if len(every) > len(classes):
        told.append(
            f"Of {len(every)} classes the {len(classes)} with the most prompts are looked at one "
            "by one (analysis.classes)."
        )
    for key, noun in (("heads", "heads"), ("neurons", "neurons")):
        if key in shares:
            own, chance = shares[key]
            told.append(
                f"Two classes share {own:.1f} of their top {options.shown} {noun} on average over "
                f"{len(classes)} classes; random lists would share {chance:.2g}."
            )
    cancelled = [f"{estimates[f'cancellation/{k}']} of {n}" for k, n in
                 (("blocks", "blocks"), ("heads", "heads"), ("neurons", "neurons"))
                 if f"cancellation/{k}" in estimates]  # fmt: skip
    told.append(
        "Contributions of the other sign undo a share of the absolute contributions: "
        + ", ".join(cancelled)
        + " (neurons to first order)."
    )
    told += _on_sources(explained, scores, sources, draws)
    told += _on_ablation(options, explained, found.compared, found.curve)
    if scores.reason:
        told.append(f"Heads are not split by source position: {scores.reason}")
    if sources.reason:
        told.append(f"What attention reads is left out: {sources.reason}")
    for opaque, reason in scores.opaque.items():
        told.append(f"Neurons of layer {opaque} are not told apart: {reason}.")
    return tuple(told)


def _on_sources(
    explained: Explained, scores: PromptScores, sources: Sources, draws: Resamples
) -> list[str]:
    told = []
    own = explained.subject.heads
    if own:
        index = [explained.lm.layout.index(head) for head in own]
        e = draws.mean(scores.heads_NA[:, index].sum(1))
        told.append(
            f"The circuit's {plural(len(own), 'head')} together add {e} nats, scored one by one; "
            f"all heads add {draws.mean(scores.heads_NA.sum(1))}."
        )
    if not scores.reason:
        groups = group_means(explained, sources)
        total = {name: float(increase.sum()) for name, (increase, _) in groups.items()}
        said = ", ".join(f"{value:+.2f} from {name}" for name, value in
                         sorted(total.items(), key=lambda item: -item[1]))  # fmt: skip
        told.append(
            f"By kind of source token, the {len(sources.heads)} chosen heads take {said} (nats, "
            "summed over heads)."
        )
    for kind, shares in sources.value_queries.items():
        (block, layer), share = max(shares.mean_blocks().items(), key=lambda item: abs(item[1]))
        where = block if layer < 0 else f"{block.replace('_', '-')} of layer {layer}"
        told.append(
            f"Through their {kind} subkeys, each prompt's best neurons are moved the most by the "
            f"{where}: a signed share of {share:+.2f}."
        )
    return told


def _shares_said(estimates: Mapping[str, Estimate]) -> str:
    if "share/attention" not in estimates:
        return "That is no gain that could be shared out between attention and feed-forward blocks."
    return (
        f"Attention adds {estimates['share/attention']} of the gain, feed-forward blocks "
        f"{estimates['share/feed_forward']}."
    )


def _on_ablation(
    options: Attribution,
    explained: Explained,
    compared: Mapping[str, Ablated],
    curve: Sequence[CurvePoint],
) -> list[str]:
    told = []
    if compared:
        draws = Resamples(len(compared[NOTHING].log_probability_N), explained.subject.seed)
        mrr = {name: draws.mean(entry.reciprocal_rank_N) for name, entry in compared.items()}
        by = [name for name in order_by(compared) if name not in (NOTHING, RANDOM)]
        best = by[0].replace("_", " ")
        own = "log_probability_increase"
        told.append(
            f"Zeroing the {options.ablated} best neurons of each prompt takes the mean reciprocal "
            f"rank from {mrr[NOTHING]} to {mrr[own]} by log-probability increase, and to "
            f"{mrr[RANDOM]} with random neurons; lowest by {best}: {mrr[by[0]]} (n = {draws.n})."
        )
        harm = {name: compared[name].log_probability_N - compared[own].log_probability_N
                for name in by if name != own}  # fmt: skip
        clear = [name for name, gap_N in harm.items() if draws.mean(gap_N).low > 0]
        told.append(
            f"By log-probability, zeroing by log-probability increase costs the answer more than "
            f"by {len(clear)} of the {len(harm)} other scores (paired intervals above 0)."
        )
    for what in ("neurons", "heads"):
        points = [p for p in curve if p.what == what]
        most = max((p.count for p in points), default=0)
        last = {p.arm: p for p in points if p.count == most}
        if most and "own" in last:
            draws = Resamples(len(last["own"].log_probability_n), explained.subject.seed)
            said = [f"{draws.mean(last[arm].log_probability_n)} ({arm})" for arm in last]
            told.append(
                f"With {most} {what} zeroed that were chosen on other prompts, the answer's "
                f"log-probability is {', '.join(said)} nats (n = {draws.n})."
            )
    return told
