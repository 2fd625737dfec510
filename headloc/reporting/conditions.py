"""The conditions of the verdict in the words of the tables, and the question that each answers."""

from __future__ import annotations

from collections.abc import Mapping

_LABELS = {
    "full": "full model",
    "circuit": "circuit alone",
    "heads_open_mlps": "its heads, all FFNs on",
    "heads_only": "its heads, all FFNs off",
    "mlps_only": "its FFNs, all heads off",
    "no_mlps": "all heads, all FFNs off",
    "without_circuit": "without the circuit",
    "random": "random heads",
    "random_layers": "random, same layers",
    "off": "every head off",
}

_LABELS_GATED = {
    "circuit": "circuit, heads and FFNs",
    "random": "random heads and FFNs",
    "off": "all heads and FFNs off",
}
"""Other words where feed-forward blocks (FFNs) are gated as well."""

MEANINGS = {
    "full": "the model as it is",
    "circuit": "all other heads switched off: is the circuit sufficient?",
    "without_circuit": "only the circuit switched off: is it necessary?",
    "random": "as many heads, drawn at random: is it better than chance?",
    "random_layers": "drawn at random with as many heads in every layer: do the heads matter, "
    "or only their layers?",
    "off": "what is left without any head at the gated positions",
}

_MEANINGS_GATED = {
    "circuit": "all other heads and feed-forward blocks (FFNs) switched off: is it sufficient?",
    "heads_open_mlps": "all other heads switched off and every FFN on: what the heads do with "
    "the FFNs as they are",
    "heads_only": "all other heads and every FFN switched off: do the heads suffice alone?",
    "mlps_only": "the circuit's FFNs without any head: what do they carry?",
    "no_mlps": "every FFN switched off, no head is: what could heads alone reach?",
    "random": "as many heads and as many FFNs, drawn at random: is it better than chance?",
    "random_layers": "the circuit's FFNs and random heads, as many in every layer: do the heads "
    "matter, or only their layers?",
    "off": "what is left without any head or FFN at the gated positions",
}

MEANINGS_OF_MEANS = {
    "full": "few-shot prompts, the model as it is",
    "circuit": "zero-shot prompts with the task means of these heads alone: are they sufficient?",
    "without_circuit": "zero-shot prompts with the task means of all other heads: are these heads "
    "necessary?",
    "random": "task means of as many heads, drawn at random: is it better than chance?",
    "random_layers": "drawn at random with as many heads in every layer: do the heads matter, "
    "or only their layers?",
    "off": "zero-shot prompts without the task mean of any head",
}
"""For objectives that carry task means into zero-shot prompts."""

_MEANINGS_OF_MEANS_GATED = {
    "circuit": "zero-shot prompts with the task means of these heads and feed-forward blocks "
    "(FFNs): are they sufficient?",
    "heads_open_mlps": "the task means of these heads and of every FFN",
    "heads_only": "the task means of these heads and of no FFN: do the heads suffice alone?",
    "mlps_only": "the task means of the circuit's FFNs and of no head",
    "no_mlps": "the task means of every head and of no FFN: what could heads alone reach?",
    "without_circuit": "the task means of all other heads and FFNs: are these necessary?",
    "random": "task means of as many heads and FFNs, drawn at random: better than chance?",
    "random_layers": "the circuit's FFNs and random heads, as many in every layer",
    "off": "zero-shot prompts without any task mean",
}


def labels(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the names of the conditions in the order of the tables.

    Args:
        metrics: flat figures, which tell whether feed-forward blocks were gated.
    """
    return {**_LABELS, **(_LABELS_GATED if _gated(metrics) else {})}


def meanings(metrics: Mapping[str, float], *, from_means: bool) -> dict[str, str]:
    """Return the question that each condition answers.

    Args:
        metrics: flat figures, which tell whether feed-forward blocks were gated.
        from_means: whether the objective carries task means into zero-shot prompts.
    """
    words = MEANINGS_OF_MEANS if from_means else MEANINGS
    gated = _MEANINGS_OF_MEANS_GATED if from_means else _MEANINGS_GATED
    return {**words, **(gated if _gated(metrics) else {})}


def _gated(metrics: Mapping[str, float]) -> bool:
    return "accuracy/no_mlps" in metrics
