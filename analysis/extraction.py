"""Do the heads' OV circuits extract labels?  What each label token would have a head write.

At the label token of every demonstration: the contrast of its own label in the value-output vector,
weighted by attention and not; the rank of the label among all tokens; the tokens that rank first;
and, from the weights alone, the copying score.  Heads are typed by the labels that they write
(Yu & Ananiadou 2024 find heads for `foo` and heads for `bar`).

Shapes: P prompts, N demonstrations, L labels, B rows, V vocabulary, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from headloc.errors import HeadlocError
from headloc.heads import HeadId
from headloc.lm.projection import output_weights
from headloc.objectives.prompts import encode_examples
from headloc.randomness import stream

from . import extraction_shown as shown
from .base import (
    Analysis,
    Findings,
    Progress,
    Subject,
    require_demonstrations,
    require_heads,
)
from .copying import copying_score, embeddings, input_gains, token_map
from .label_prompts import LabelAnswers, LabelSet, joined, label_answers, label_set
from .prompting import ROWS, Chunk, label_columns
from .reading import by_layer
from .value_maps import value_maps
from .value_outputs import ChunkOutputs, read_outputs

if TYPE_CHECKING:
    from torch import Tensor

    from headloc.tasks import Example

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Extraction(Analysis):
    """Options.

    Attributes:
        prompts: fresh prompts that are measured.
        vocabulary_prompts: of these, prompts whose vectors are ranked in the whole vocabulary.
        top: tokens that are listed.
        other_heads: heads outside of the circuit, drawn at random, for comparison.
    """

    prompts: int = 256
    vocabulary_prompts: int = 64
    top: int = 8
    other_heads: int = 12
    name: ClassVar[str] = "extraction"
    question: ClassVar[str] = "Which labels do the heads extract from the label tokens?"

    def __post_init__(self) -> None:
        if min(self.prompts, self.vocabulary_prompts, self.top) < 1 or self.other_heads < 0:
            raise HeadlocError(
                "The options of analysis=extraction must be 1 or more (other_heads: 0 or more)."
            )

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        require_heads(subject)
        require_demonstrations(subject)
        examples = subject.examples(self.prompts, "extraction")
        labels = label_set(subject.lm, subject.task, examples[0])
        others = drawn_others(subject, self.other_heads)
        read = _read(subject, labels, examples, (*subject.heads, *others),
                     self.vocabulary_prompts, progress)  # fmt: skip
        scores = _copying(subject, (*subject.heads, *others))
        return shown.findings(subject, labels, read, scores, self.top)


@dataclass
class ExtractionReading:
    """What was measured, filled chunk by chunk.

    Attributes:
        heads: the circuit's heads and others.
        shown_PN: label of each demonstration.
        contrast: by head, contrast_PLN of the vectors at the label tokens.
        attention: by head, attention_PN on the label tokens.
        written: by head, written_PL: contrasts of what the head adds.
        rank: by head, rank_PN of the demonstration's label among all tokens, 1 is first.
        logits: by head, mean logits_LV of the vectors behind each label.
        answers: what the model answers.
    """

    heads: tuple[HeadId, ...]
    shown_PN: NDArray[np.int64]
    contrast: dict[HeadId, list[Array]] = field(default_factory=dict)
    attention: dict[HeadId, list[Array]] = field(default_factory=dict)
    written: dict[HeadId, list[Array]] = field(default_factory=dict)
    rank: dict[HeadId, list[Array]] = field(default_factory=dict)
    logits: dict[HeadId, Tensor] = field(default_factory=dict)
    answers: list[LabelAnswers] = field(default_factory=list)

    def of(self, name: str, head: HeadId) -> Array:
        """Return a measure of a head over all prompts."""
        return np.concatenate(getattr(self, name)[head])

    def answered(self) -> LabelAnswers:
        """Return the model's answers to all prompts."""
        return joined(self.answers)


def drawn_others(subject: Subject, count: int) -> tuple[HeadId, ...]:
    """Return some heads outside of the circuit, drawn at random."""
    kept = set(subject.heads)
    others = [head for head in subject.lm.layout if head not in kept]
    rng = stream(subject.seed, "analysis", "other heads")
    return tuple(sorted(others[i] for i in rng.permutation(len(others))[:count]))


def _read(
    subject: Subject,
    labels: LabelSet,
    examples: Sequence[Example],
    heads: tuple[HeadId, ...],
    vocabulary_prompts: int,
    progress: Progress,
) -> ExtractionReading:
    found = ExtractionReading(heads, labels.shown(examples))
    for name in ("contrast", "attention", "written", "rank"):
        getattr(found, name).update({head: [] for head in heads})
    asked_P = labels.asked(examples)
    for start in range(0, len(examples), ROWS):
        rows = slice(start, min(start + ROWS, len(examples)))
        some = tuple(examples[rows])
        encoded, batch = encode_examples(subject.lm, some, subject.task.template)
        columns_BN = label_columns(Chunk(rows, some, encoded, batch, None))
        chunk = read_outputs(subject.lm, batch, heads, labels)
        for head, one in chunk.heads.items():
            attention_BN, contrast_LBN = one.at(columns_BN)
            found.attention[head].append(attention_BN.cpu().numpy())
            found.contrast[head].append(contrast_LBN.transpose(0, 1).cpu().numpy())
            found.written[head].append(one.written_LB.T.cpu().numpy())
        few = max(0, min(rows.stop, vocabulary_prompts) - start)
        if few:
            _add_vocabulary(subject, labels, found, chunk, columns_BN[:few],
                            found.shown_PN[start : start + few])  # fmt: skip
        with torch.no_grad():
            logits_BJV = subject.lm.logits(batch)
        found.answers.append(label_answers(labels, logits_BJV, batch, asked_P[rows]))
        progress(rows.stop, len(examples))
    return found


@torch.no_grad()
def _add_vocabulary(
    subject: Subject,
    labels: LabelSet,
    found: ExtractionReading,
    chunk: ChunkOutputs,
    columns_BN: Tensor,
    shown_BN: NDArray[np.int64],
) -> None:
    """Project the vectors of the first rows of a chunk onto the vocabulary."""
    shown = torch.from_numpy(shown_BN).to(columns_BN.device)
    # Rows of a reading and of a readout are those of the chunk: take the first.
    few = len(columns_BN)
    readout = chunk.readout.rows(slice(0, few))
    for head in found.heads:
        padded = columns_BN.new_zeros(len(chunk.logits_BV), columns_BN.shape[1])
        padded[:few] = columns_BN
        vectors_BND = chunk.vectors(subject.lm, head, padded)[:few]
        logits_BNV = readout.parts(vectors_BND)
        own_BN = logits_BNV.gather(2, labels.ids_L[shown][..., None])
        rank_BN = 1 + (logits_BNV > own_BN).sum(-1)
        found.rank[head].append(rank_BN.double().cpu().numpy())
        sums_LV = torch.stack(
            [logits_BNV[shown == label].sum(0) for label in range(len(labels.names))]
        )
        found.logits[head] = found.logits.get(head, torch.zeros_like(sums_LV)) + sums_LV


def _copying(subject: Subject, heads: Sequence[HeadId]) -> dict[HeadId, float]:
    """Return the copying score of some heads, the gains of the norms folded in."""
    lm = subject.lm
    layers = by_layer(lm, heads)
    maps, gains = value_maps(lm, list(layers)), input_gains(lm, list(layers))
    map_DD = token_map(*embeddings(lm))
    final_D = _final_gain(subject)
    scores = {}
    for position, which in layers.items():
        layer = lm.layout.layers[position]
        for head in which:
            value_dD, _ = maps[position].of_head(head, layer.heads)
            output_dD = output_weights(lm, position)[head].double() * final_D
            folded_dD = value_dD.double() * gains[position]
            scores[HeadId(layer.layer, head)] = copying_score(folded_dD, output_dD, map_DD)[0]
    return scores


def _final_gain(subject: Subject) -> Tensor:
    """Return what the final norm multiplies with, up to a factor, gain_D."""
    from .stream_reading import read_parts

    examples = subject.examples(8, "extraction gain")
    _, batch = encode_examples(subject.lm, examples, subject.task.template)
    return read_parts(subject.lm, batch).norm.slope_BD.mean(0)
