"""Are the heads two towers of a learned metric?  Queries find demonstrations of their own class.

The query tower maps the last prompt token, the key tower each demonstration's label token; their
inner product is the head's score (Yu & Ananiadou 2024, arXiv 2402.02872).  As a metric it is judged
by retrieval: do demonstrations of the query's class score above the others?  The same is asked of
the content part alone, of every other head, and of the residual stream that both towers read.

Shapes: P prompts, N demonstrations, A heads of the model, L labels, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from headloc.errors import HeadlocError
from headloc.objectives.prompts import encode_examples

from . import towers_shown as shown
from .base import (
    Analysis,
    Findings,
    Progress,
    Subject,
    require_demonstrations,
    require_heads,
)
from .bilinear import Spectrum, bilinear_spectrum
from .label_prompts import (
    LabelAnswers,
    LabelSet,
    classes_of,
    joined,
    label_answers,
    label_set,
)
from .prompting import ROWS, Chunk, label_columns
from .retrieval import retrieval
from .tower_reading import Towers, read_towers, towers_of

if TYPE_CHECKING:
    from headloc.tasks import Example

Array = NDArray[np.float64]

SCORES = ("total", "content", "position", "stream")
"""What is asked to retrieve: the score, its two parts, and the cosine of the residual streams."""


@dataclass(frozen=True)
class TowersAnalysis(Analysis):
    """Options.

    Attributes:
        prompts: fresh prompts that retrieval is measured on.
        neighbours: demonstrations that vote in the nearest-neighbour classifier.
        random_sets: random sets of as many heads, drawn from the others.
        pictured_prompts: prompts of one task whose towers are drawn.
    """

    prompts: int = 512
    neighbours: int = 1
    random_sets: int = 200
    pictured_prompts: int = 96
    name: ClassVar[str] = "towers"
    question: ClassVar[str] = "Are the heads two towers: does the score find the query's class?"

    def __post_init__(self) -> None:
        if min(self.prompts, self.neighbours, self.random_sets, self.pictured_prompts) < 1:
            raise HeadlocError("The options of analysis=towers must be 1 or more.")

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        require_heads(subject)
        require_demonstrations(subject, 2)
        examples = subject.examples(self.prompts, "towers")
        labels = label_set(subject.lm, subject.task, examples[0])
        towers = towers_of(subject.lm, range(len(subject.lm.layout.layers)))
        read = read_scores(subject, towers, labels, examples, progress)
        measures = {
            kind: [
                retrieval(read.scores[kind][:, head], read.shown_PN, read.asked_P, self.neighbours)
                for head in range(subject.lm.layout.total)
            ]
            for kind in SCORES
        }
        spectra = [_spectrum(subject, towers, index) for index in range(subject.lm.layout.total)]
        found = shown.Shown(subject, read.answers, measures, spectra, self.random_sets)
        plane = partial(self._plane, subject, towers, found.best_head())
        return found.findings(plane)

    def _plane(self, subject: Subject, towers: dict[int, Towers], head: int) -> dict[str, Any]:
        """Return both towers of a head on prompts of one task, for the picture."""
        examples = subject.examples(self.prompts, "towers picture")
        # One task and its relabelled twins: the same classes behind every label.
        classes = {part.split("=")[0] for part in examples[0].task.split(",")}
        picked = [e for e in subject.examples(50 * self.pictured_prompts, "towers picture")
                  if {part.split("=")[0] for part in e.task.split(",")} == classes]  # fmt: skip
        picked = picked[: self.pictured_prompts] or examples[:1]
        return plane_of(subject, towers, head, picked)


@dataclass(frozen=True, slots=True)
class ScoreReading:
    """Scores of all heads on all prompts.

    Attributes:
        scores: by kind (`SCORES`), score_PAN.
        shown_PN: label of each demonstration.
        asked_P: label of the query.
        answers: what the model answers.
    """

    scores: dict[str, Array]
    shown_PN: NDArray[np.int64]
    asked_P: NDArray[np.int64]
    answers: LabelAnswers


@torch.no_grad()
def read_scores(
    subject: Subject,
    towers: dict[int, Towers],
    labels: LabelSet,
    examples: Sequence[Example],
    progress: Progress,
) -> ScoreReading:
    """Score each query with the label token of each demonstration, for every head of the model."""
    parts: dict[str, list[Array]] = {kind: [] for kind in SCORES}
    answers = []
    asked_P = labels.asked(examples)
    for start in range(0, len(examples), ROWS):
        some = examples[start : start + ROWS]
        encoded, batch = encode_examples(subject.lm, some, subject.task.template)
        columns_BN = label_columns(Chunk(slice(0), tuple(some), encoded, batch, None))
        layers: dict[str, list[torch.Tensor]] = {kind: [] for kind in SCORES}
        for _, one in read_towers(subject.lm, batch, towers, columns_BN):
            heads = one.query_BHd.shape[1]
            layers["total"].append(one.scores.total_BHC)
            layers["content"].append(one.scores.content_BHC)
            layers["position"].append(one.scores.position_BHC)
            x_BCD = torch.nn.functional.normalize(one.stream_BCD, dim=-1)
            cosine_BN = (x_BCD[:, :-1] * x_BCD[:, -1:]).sum(-1)
            layers["stream"].append(cosine_BN[:, None].expand(-1, heads, -1))
        for kind, found in layers.items():
            parts[kind].append(torch.cat(found, dim=1).cpu().numpy())
        logits_BJV = subject.lm.logits(batch)
        answers.append(label_answers(labels, logits_BJV, batch, asked_P[start : start + ROWS]))
        progress(start + len(some), len(examples))
    scores = {kind: np.concatenate(found) for kind, found in parts.items()}
    return ScoreReading(scores, labels.shown(examples), asked_P, joined(answers))


def _spectrum(subject: Subject, towers: dict[int, Towers], index: int) -> Spectrum:
    head = subject.lm.layout.head(index)
    known = {layer.layer: p for p, layer in enumerate(subject.lm.layout.layers)}
    return bilinear_spectrum(*towers[known[head.layer]].maps.of_head(head.head))


@torch.no_grad()
def plane_of(
    subject: Subject, towers: dict[int, Towers], index: int, examples: Sequence[Example]
) -> dict[str, Any]:
    """Return one head's towers in the plane of their largest variance.

    Each tower is taken relative to its own mean; the plane is that of both together.

    Args:
        subject: what is analysed.
        towers: towers by position of the layer.
        index: the head's flat index.
        examples: prompts whose labels stand for the same classes, in any order.

    Returns:
        keys and queries [points, 2], their classes, and the share of the variance in the plane.
    """
    head = subject.lm.layout.head(index)
    position = next(
        p for p, layer in enumerate(subject.lm.layout.layers) if layer.layer == head.layer
    )
    encoded, batch = encode_examples(subject.lm, examples, subject.task.template)
    columns_BN = label_columns(Chunk(slice(0), tuple(examples), encoded, batch, None))
    ((_, one),) = read_towers(subject.lm, batch, {position: towers[position]}, columns_BN)
    keys_Pd = one.key_BCHd[:, :, head.head].flatten(0, 1)
    queries_Pd = one.query_BHd[:, head.head]
    keys_Pd, queries_Pd = (part - part.mean(0) for part in (keys_Pd, queries_Pd))
    both_Pd = torch.cat([_unit(keys_Pd), _unit(queries_Pd)])
    _, sizes, rows = torch.linalg.svd(both_Pd, full_matrices=False)
    plane_d2 = rows[:2].T
    classes = [classes_of(example) for example in examples]
    return {
        "head": str(head),
        "keys": (_unit(keys_Pd) @ plane_d2).cpu().numpy(),
        "queries": (_unit(queries_Pd) @ plane_d2).cpu().numpy(),
        "key_classes": [of[d.output] for e, of in zip(examples, classes, strict=True)
                        for d in e.demonstrations],
        "query_classes": [of[e.answer] for e, of in zip(examples, classes, strict=True)],
        "share": float(sizes[:2].square().sum() / sizes.square().sum()),
    }  # fmt: skip


def _unit(points_Pd: torch.Tensor) -> torch.Tensor:
    """Bring a tower to mean square one: queries and keys have different sizes."""
    return points_Pd / points_Pd.square().sum(-1).mean().sqrt().clamp(min=1e-300)
