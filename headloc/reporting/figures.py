"""Figures of a run in the order and the words in which people are told them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headloc.reporting.conditions import labels
from headloc.reporting.text import duration, percent, plural

SPLITS = {"": "tasks trained on", "held_out/": "held-out tasks"}
"""Prefix of the metrics of a split, and its name."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with what is known of its uncertainty.

    Attributes:
        value: the figure.
        low: lower end of its 95 % interval.
        high: upper end.
        n: number of prompts.
        smallest: smallest among the random sets.
        largest: largest among the random sets.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    smallest: float | None = None
    largest: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def spread(self) -> str:
        """The range over random sets, or an empty text."""
        if self.smallest is None or self.largest is None:
            return ""
        return f"{self.smallest:.3f} to {self.largest:.3f}"


@dataclass(frozen=True, slots=True)
class AccuracyRow:
    """Accuracies of one condition, by split in the order of `SPLITS`, None if not scored."""

    condition: str
    label: str
    figures: tuple[Figure | None, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One line about a run; `note` says more where there is room."""

    label: str
    value: str
    note: str = ""


def figure(metrics: Mapping[str, float], key: str) -> Figure | None:
    """Return a figure from flat metrics, None when it is not there."""
    if key not in metrics:
        return None
    size = metrics.get(f"{key}/n")
    return Figure(
        metrics[key],
        metrics.get(f"{key}/low"),
        metrics.get(f"{key}/high"),
        None if size is None else int(size),
        metrics.get(f"{key}/smallest"),
        metrics.get(f"{key}/largest"),
    )


def accuracy_rows(metrics: Mapping[str, float]) -> list[AccuracyRow]:
    """Return the accuracies that flat metrics hold, in the order of the conditions."""
    rows = [
        AccuracyRow(name, label, tuple(figure(metrics, f"{s}accuracy/{name}") for s in SPLITS))
        for name, label in labels(metrics).items()
    ]
    return [row for row in rows if any(row.figures)]


def split_sizes(metrics: Mapping[str, float]) -> dict[str, int]:
    """Return the number of prompts behind the accuracies, by prefix of the splits scored."""
    sizes = {prefix: figure(metrics, f"{prefix}accuracy/circuit") for prefix in SPLITS}
    return {prefix: found.n or 0 for prefix, found in sizes.items() if found is not None}


def facts(metrics: Mapping[str, float]) -> list[Fact]:
    """Return what else there is to say of a run, one line each."""
    found = [
        _heads(metrics),
        _mlps(metrics),
        _kept(metrics),
        _faithfulness(metrics),
        _stability(metrics),
        _path(metrics),
        _elbow(metrics),
        _greedy(metrics),
        _cost(metrics),
    ]
    if "time/seconds" in metrics:
        found.append(Fact("time", duration(metrics["time/seconds"])))
    return [fact for fact in found if fact is not None]


def cost_rows(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return (stage, forward-equivalents) of the stages that cost anything."""
    whole = "cost/forward_equivalents"
    return [
        (key.removeprefix("cost/").replace("_", " "), value)
        for key, value in metrics.items()
        if key.startswith("cost/") and key != whole and value > 0
    ]


def _heads(metrics: Mapping[str, float]) -> Fact | None:
    if "heads/count" not in metrics:
        return None
    count, total = metrics["heads/count"], metrics["heads/total"]
    text = f"{count:.0f} of {total:.0f} ({percent(count / total)})"
    if "heads/requested" in metrics:
        text += f", requested {metrics['heads/requested']:.0f}"
    return Fact("heads", text)


def _mlps(metrics: Mapping[str, float]) -> Fact | None:
    if "mlps/count" not in metrics:
        return None
    count, total = metrics["mlps/count"], metrics["mlps/total"]
    text = f"{count:.0f} of {total:.0f} feed-forward blocks ({percent(count / total)})"
    if "gates/requested" in metrics:
        text += f"; heads and blocks requested {metrics['gates/requested']:.0f}"
    return Fact("FFNs", text)


def _kept(metrics: Mapping[str, float]) -> Fact | None:
    return _by_split(metrics, "accuracy_kept", "accuracy kept", "circuit / full model", percent)


def _faithfulness(metrics: Mapping[str, float]) -> Fact | None:
    note = "(circuit - off) / (full - off)"
    return _by_split(metrics, "faithfulness", "faithfulness", note, "{:.3f}".format)


def _by_split(
    metrics: Mapping[str, float], key: str, label: str, note: str, write: Callable[[float], str]
) -> Fact | None:
    texts = [
        f"{write(metrics[prefix + key])} on {name}"
        for prefix, name in SPLITS.items()
        if prefix + key in metrics
    ]
    return Fact(label, ", ".join(texts), note) if texts else None


def _stability(metrics: Mapping[str, float]) -> Fact | None:
    if "stability/jaccard" not in metrics:
        return None
    text = f"Jaccard index {metrics['stability/jaccard']:.2f}"
    if "stability/jaccard/smallest" in metrics:
        text += f" (smallest {metrics['stability/jaccard/smallest']:.2f})"
    count = metrics.get("stability/replicates", 0)
    return Fact("stability", f"{text} with {plural(count, 'replicate')}")


def _path(metrics: Mapping[str, float]) -> Fact | None:
    if "path/recommended/heads" not in metrics:
        return None
    seeds = plural(metrics["path/seeds"], "seed")
    text = (
        f"{metrics['path/penalties']:.0f} penalties x {seeds}; recommended: the "
        f"smallest stable set that keeps {percent(metrics['path/keep'])} of the full accuracy on "
        f"selection prompts (it keeps {percent(metrics['path/recommended/kept'])}; each head is "
        f"chosen by at least {percent(metrics['path/recommended/stability'])} of the seeds)"
    )
    return Fact("path", text)


def _elbow(metrics: Mapping[str, float]) -> Fact | None:
    if "path/elbow/heads" not in metrics:
        return None
    text = f"{plural(metrics['path/elbow/heads'], 'head')}, accuracy "
    text += f"{metrics['path/elbow/accuracy']:.3f} on selection prompts"
    return Fact("elbow", text, "beyond it further heads bring little")


def _greedy(metrics: Mapping[str, float]) -> Fact | None:
    if "greedy/heads" not in metrics:
        return None
    text = f"{plural(metrics['greedy/heads'], 'head')} by greedy backward elimination"
    return Fact("greedy", f"{text}, Jaccard index {metrics['greedy/jaccard']:.2f}")


def _cost(metrics: Mapping[str, float]) -> Fact | None:
    whole = metrics.get("cost/forward_equivalents")
    if whole is None:
        return None
    note = ", ".join(f"{stage} {value:,.0f}" for stage, value in cost_rows(metrics))
    return Fact("cost", f"{whole:,.0f} forward-equivalents", note)
