"""Tables of `attribution.py` on sources: what is read, from where, and by what.

Shapes: C chosen heads, K best neurons per prompt, T columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headloc.heads import HeadId

from .attribution_data import Explained
from .attribution_read import PromptScores
from .attribution_sources import Sources
from .attribution_text import Texts
from .base import Table
from .vocabulary import words

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

Rows = list[list[Any]]


def source_tables(
    lm: FrozenLM,
    explained: Explained,
    scores: PromptScores,
    sources: Sources,
    texts: Texts,
    rows: Sequence[int],
    k: int,
) -> list[Table]:
    """Return the tables on sources.

    Args:
        lm: the model.
        explained: the prompts.
        scores: of the first pass.
        sources: of the second pass.
        texts: vocabulary readings.
        rows: prompts that are shown token by token.
        k: length of lists.
    """
    return [
        Table("attention_neurons", ("head", "dimension", "prompts", "sum", "source"),
              attention_neurons(lm, explained, scores, 2 * k),
              "Attention neurons (a dimension of a head at one source token) among the best of a "
              "prompt: on how many prompts, their summed increase over prompts, and the most "
              "frequent kind of source token."),
        Table("sources", ("head", "tokens", "increase", "attention"),
              groups(explained, sources),
              "Log-probability increase of a head's part by kind of source token, and attention "
              "to it, summed over the tokens of a kind and averaged over prompts."),
        Table("strips", ("prompt", "class", "answer", "position", "token", "increase"),
              strips(explained, sources, rows),
              "Source tokens of single prompts, summed over the chosen heads."),
        Table("query_blocks", ("subkey", "block", "layer", "share"),
              query_blocks(sources),
              "Signed shares of the blocks in the pre-activations of each prompt's best neurons, "
              "by kind of subkey, weighted by their log-probability increase."),
        Table("query_neurons", ("subkey", "layer", "neuron", "share", "coefficient", "promotes",
                                "suppresses"), query_neurons(texts),
              "Earlier feed-forward neurons behind these pre-activations; for attention neurons "
              "at their source tokens."),
        Table("head_reads", ("head", "layer", "neuron", "share", "coefficient", "promotes",
                             "through_the_head_promotes", "through_the_head_suppresses"),
              head_reads(texts),
              "Feed-forward neurons that a head reads at the source token that "
              "helps the most, by their signed share of the answer's gradient through the head."),
    ]  # fmt: skip


def strip(
    explained: Explained, sources: Sources, row: int
) -> tuple[list[str], list[float], str, str]:
    """Return tokens of a prompt, their increase summed over chosen heads, the class, the answer."""
    columns = explained.columns(row)
    increase = sources.increase_NCT[row].sum(0)[columns].tolist()
    return explained.tokens(row), increase, explained.examples[row].task, explained.answer(row)


def attention_neurons(lm: FrozenLM, explained: Explained, scores: PromptScores, k: int) -> Rows:
    """Rows: attention neurons by their summed increase over prompts."""
    best = scores.attention_neurons
    if best is None:
        return []
    width = {layer.layer: layer.width for layer in lm.layout.layers}
    seen: dict[tuple[HeadId, int], list[tuple[int, float, str]]] = {}
    for row in range(len(best.layer_NK)):
        group = dict(zip(explained.columns(row), explained.groups(row), strict=True))
        for layer, number, column, score in zip(
            best.layer_NK[row], best.neuron_NK[row], best.column_NK[row], best.score_NK[row],
            strict=True,
        ):  # fmt: skip
            if score > 0:
                head, dimension = divmod(int(number), width[int(layer)])
                entry = row, float(score), group.get(int(column), "padding")
                seen.setdefault((HeadId(int(layer), head), dimension), []).append(entry)
    ranked = sorted(seen.items(), key=lambda item: -sum(score for _, score, _ in item[1]))
    return [
        [str(head), dimension, len({row for row, _, _ in entries}),
         sum(score for _, score, _ in entries),
         Counter(group for _, _, group in entries).most_common(1)[0][0]]
        for (head, dimension), entries in ranked[:k]
    ]  # fmt: skip


def group_means(explained: Explained, sources: Sources) -> dict[str, tuple[Any, Any]]:
    """Return increase and attention of the C heads by kind of source token, averaged over rows."""
    found: dict[str, tuple[Any, Any]] = {}
    count = len(explained.batch)
    for row in range(count):
        for column, group in zip(explained.columns(row), explained.groups(row), strict=True):
            nothing = np.zeros(len(sources.heads)), np.zeros(len(sources.heads))
            increase, attention = found.get(group, nothing)
            found[group] = (
                increase + sources.increase_NCT[row, :, column] / count,
                attention + sources.attention_NCT[row, :, column] / count,
            )
    return found


def groups(explained: Explained, sources: Sources) -> Rows:
    """Rows: heads by kind of source token."""
    if not sources.attention_NCT.any():
        return []
    means = group_means(explained, sources)
    return [
        [str(head), group, float(increase[place]), float(attention[place])]
        for place, head in enumerate(sources.heads)
        for group, (increase, attention) in means.items()
    ]


def strips(explained: Explained, sources: Sources, rows: Sequence[int]) -> Rows:
    """Rows: the tokens of single prompts."""
    if not sources.attention_NCT.any():
        return []
    found: Rows = []
    for number, row in enumerate(rows):
        tokens, increase, name, answer = strip(explained, sources, row)
        for place, (token, value) in enumerate(zip(tokens, increase, strict=True)):
            found.append([number, name, answer, place, token, value])
    return found


def query_blocks(sources: Sources) -> Rows:
    """Rows: shares of blocks by kind of subkey."""
    found = dict(sources.value_queries)
    if sources.attention_queries.weight:
        found["attention value"] = sources.attention_queries
    return [
        [kind, block, None if layer < 0 else layer, share]
        for kind, shares in found.items()
        for (block, layer), share in sorted(
            shares.mean_blocks().items(), key=lambda item: (item[0][1], item[0][0])
        )
    ]


def query_neurons(texts: Texts) -> Rows:
    """Rows: earlier neurons by kind of subkey."""
    lists = dict(texts.queries)
    if texts.sources:
        lists["attention value"] = texts.sources
    return [
        [kind, q.layer, q.neuron, q.share, q.coefficient, words(r.top), words(r.bottom)]
        for kind, entries in lists.items()
        for q, r in entries
    ]


def head_reads(texts: Texts) -> Rows:
    """Rows: neurons that chosen heads read."""
    return [
        [str(head), q.layer, q.neuron, q.share, q.coefficient, words(own.top),
         "" if other is None else words(other.top), "" if other is None else words(other.bottom)]
        for head, entries in texts.read_by.items()
        for q, own, other in entries
    ]  # fmt: skip
