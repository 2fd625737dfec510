"""Figures and tables of `towers.py`; pictures are in `towers_pictures.py`.

Shapes: P prompts, A heads of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headloc.evaluation.intervals import Estimate
from headloc.randomness import stream

from . import towers_pictures as picture
from .base import Findings, Picture, Subject, Table
from .bilinear import Spectrum
from .label_prompts import LabelAnswers
from .rank_correlation import head_correlation
from .resampling import Resamples
from .retrieval import MEASURES

Array = NDArray[np.float64]
Measures = Mapping[str, Sequence[Mapping[str, Array]]]
"""By kind of score, one entry per head: measure -> [P]."""


@dataclass(frozen=True)
class Shown:
    """Everything that is told.

    Attributes:
        subject: what was analysed.
        answers: what the model answers to the same prompts.
        measures: retrieval by kind of score and head.
        spectra: spectrum of every head's bilinear form.
        random_sets: random sets of other heads.
    """

    subject: Subject
    answers: LabelAnswers
    measures: Measures
    spectra: Sequence[Spectrum]
    random_sets: int
    resamples: Resamples = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.answers.full_B)
        object.__setattr__(self, "resamples", Resamples(n, self.subject.seed))

    @property
    def kept(self) -> list[int]:
        """Flat indices of the circuit's heads."""
        return self.subject.lm.layout.indices(self.subject.heads)

    @property
    def others(self) -> list[int]:
        """All other heads."""
        return [i for i in range(self.subject.lm.layout.total) if i not in set(self.kept)]

    def matched(self) -> list[int]:
        """Other heads of the circuit's layers."""
        layers = {head.layer for head in self.subject.heads}
        layout = self.subject.lm.layout
        return [i for i in self.others if layout.head(i).layer in layers]

    def sample(self, kind: str, head: int, measure: str = "auroc") -> Array:
        """Return a measure of a head, [P]; prompts of one label alone say nothing: chance."""
        found = self.measures[kind][head][measure]
        return np.where(np.isnan(found), 0.5, found)

    def mean_of(self, kind: str, heads: Sequence[int], measure: str = "auroc") -> Array:
        """Return the mean of a measure over heads, [P]."""
        return np.mean([self.sample(kind, head, measure) for head in heads], axis=0)

    def best_head(self) -> int:
        """Return the circuit's head with the highest area under the curve."""
        return max(self.kept, key=lambda head: float(self.sample("total", head).mean()))

    def findings(self, plane: Callable[[], dict[str, Any]]) -> Findings:
        """Return the findings; the plane is read when it is drawn."""
        estimate = self.resamples.mean
        layout = self.subject.lm.layout
        rows: list[list[Any]] = []
        scalars: dict[str, float] = {}
        for head in range(layout.total):
            name = str(layout.head(head))
            for kind in self.measures:
                for measure in MEASURES:
                    e = estimate(self.sample(kind, head, measure))
                    rows.append([name, head in self.kept, kind, measure, e.value, e.low, e.high,
                                 e.n])  # fmt: skip
                    if head in self.kept and (kind, measure) != ("position", "knn_accuracy"):
                        scalars |= e.to_metrics(f"{name}/{measure}/{kind}")
        groups, sets = self._groups(), self._random_sets()
        for key, e in groups.items():
            scalars |= e.to_metrics(key)
        scalars |= {"auroc/random_sets/low": sets[0], "auroc/random_sets/high": sets[1],
                    "auroc/random_sets/n": float(self.random_sets)}  # fmt: skip
        auroc_A = np.array([self.sample("total", h).mean() for h in range(layout.total)])
        kept = head_correlation(auroc_A, self.subject.circuit.scores.numpy(), self.subject.seed)
        gates = head_correlation(auroc_A, self.subject.circuit.gates.numpy(), self.subject.seed)
        scalars |= kept.to_metrics("auroc_to_score/spearman")
        scalars |= gates.to_metrics("auroc_to_gate/spearman")
        best = self.best_head()
        return Findings(
            scalars,
            (
                Table("retrieval", ("head", "in circuit", "score", "measure", "value", "low",
                                    "high", "n"), rows,
                      "Retrieval of demonstrations of the query's class by the score of the last "
                      "prompt token with each label token; by its content and position parts; by "
                      "the cosine of the residual streams that enter the layer."),
                self._spectra_table(),
            ),
            (
                Picture("retrieval", "Area under the ROC curve of every head (grey: not in the "
                        "circuit) by score, content part, position part and residual stream; .5 "
                        "is chance.",
                        partial(picture.draw_retrieval, [str(layout.head(h)) for h in self.kept],
                                self._by_kind(), auroc_A[self.others])),
                Picture("towers", f"Query and key towers of {layout.head(best)} without position, "
                        "each relative to its mean, in the plane of their largest variance.",
                        lambda: picture.draw_plane(plane())),
                Picture("spectrum", "Singular values of each head's bilinear form, the first "
                        "being 1.",
                        partial(picture.draw_spectra, [str(layout.head(h)) for h in self.kept],
                                [self.spectra[h] for h in self.kept],
                                [self.spectra[h] for h in self.others])),
            ),
            self._sentences(groups, sets, kept),
        )  # fmt: skip

    def _groups(self) -> dict[str, Estimate]:
        """Return the circuit against other heads, and the model's own accuracies."""
        mean, of = self.resamples.mean, self.resamples.of
        found = {
            "accuracy/full_vocabulary": mean(self.answers.full_B),
            "accuracy/within_labels": mean(self.answers.within_B),
        }
        groups = {"circuit": self.kept, "best_head": [self.best_head()], "others": self.others,
                  "same_layers": self.matched()}  # fmt: skip
        samples = {name: self.mean_of("total", heads) for name, heads in groups.items() if heads}
        found |= {f"auroc/{name}": mean(sample) for name, sample in samples.items()}
        for name in ("others", "same_layers"):
            if name in samples:
                found[f"auroc/circuit_minus_{name}"] = of(
                    lambda a, b: a - b, samples["circuit"], samples[name]
                )
        found["auroc/stream"] = mean(self.mean_of("stream", self.kept))
        found["auroc/content"] = mean(self.mean_of("content", self.kept))
        found["knn_accuracy/best_head"] = mean(
            self.sample("total", self.best_head(), "knn_accuracy")
        )
        return found

    def _random_sets(self) -> tuple[float, float]:
        """Return the 2.5 and 97.5 percentiles over random sets of as many other heads."""
        if len(self.others) < len(self.kept):
            return float("nan"), float("nan")
        auroc_A = np.array([self.sample("total", h).mean() for h in self.others])
        rng = stream(self.subject.seed, "analysis", "towers", "random heads")
        drawn = [auroc_A[rng.permutation(len(auroc_A))[: len(self.kept)]].mean()
                 for _ in range(self.random_sets)]  # fmt: skip
        low, high = np.percentile(drawn, (2.5, 97.5))
        return float(low), float(high)

    def _by_kind(self) -> dict[str, list[Estimate]]:
        return {
            kind: [self.resamples.mean(self.sample(kind, head)) for head in self.kept]
            for kind in self.measures
        }

    def _spectra_table(self) -> Table:
        layout = self.subject.lm.layout
        rows: list[list[Any]] = [
            [str(layout.head(h)), h in self.kept, float(s.singular_d[0]), s.effective_rank,
             s.symmetric_share, s.positive_share, float(s.symmetric_d2[0]),
             float(s.symmetric_d2[-1])]
            for h, s in enumerate(self.spectra)
        ]  # fmt: skip
        return Table(
            "spectra",
            ("head", "in circuit", "largest singular value", "effective rank", "symmetric share",
             "positive share", "largest eigenvalue", "smallest eigenvalue"),
            rows,
            "The bilinear form of queries and keys (content) and its symmetric part. Symmetric "
            "share: of the squared norm, .5 for a random form. Positive share: of the symmetric "
            "part's eigenvalues by absolute value, .5 for a random form, 1 for a metric.",
        )  # fmt: skip

    def _sentences(
        self, groups: Mapping[str, Estimate], sets: tuple[float, float], kept: Estimate
    ) -> tuple[str, ...]:
        layout = self.subject.lm.layout
        towers = [h for h in self.kept if self.resamples.mean(self.sample("total", h)).low > 0.5]
        best = layout.head(self.best_head())
        n = self.resamples.n
        lines = [
            f"{len(towers)} of the circuit's {len(self.kept)} heads score demonstrations of the "
            f"query's class above the others ({', '.join(str(layout.head(h)) for h in towers)}): "
            f"AUROC with an interval above .5 (n = {n})."
            if towers
            else f"None of the circuit's {len(self.kept)} heads scores demonstrations of the "
            f"query's class above the others (n = {n}): the heads are not towers of this task.",
            f"Best head {best}: AUROC {groups['auroc/best_head']}; its nearest neighbour answers "
            f"{groups['knn_accuracy/best_head']}, the model "
            f"{groups['accuracy/within_labels']} within the labels and "
            f"{groups['accuracy/full_vocabulary']} in the full vocabulary.",
        ]
        if "auroc/circuit_minus_others" in groups:
            lines.append(
                f"Mean AUROC of the circuit {groups['auroc/circuit']}, minus that of all other "
                f"heads: {groups['auroc/circuit_minus_others']}; 95 % of {self.random_sets} random "
                f"sets of as many heads lie in {sets[0]:.3f} to {sets[1]:.3f}."
            )
        lines.append(
            f"Content alone retrieves with AUROC {groups['auroc/content']}, the residual stream "
            f"that the heads read with {groups['auroc/stream']} (mean over the circuit's heads)."
        )
        lines.append(
            "Retrieval against the localizer's score, rank correlation over all "
            f"{layout.total} heads: {kept} (interval over heads)."
        )
        return tuple(lines)
