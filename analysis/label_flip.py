"""When the labels are reversed, what changes: where heads look, or what they find there?

Prompts against their twins with reversed labels, counterbalanced over the order of demonstrations
and the query's class (Yu & Ananiadou 2024, arXiv 2402.02872): attention on the answer's label
tokens and their value-output vectors, exact QK and OV shares of the change, and the correlation of
attention with logits over prompts.

Shapes: P drawn examples, B rows, N demonstrations, L labels.
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
from headloc.objectives.prompts import encode_examples

from . import label_flip_shown as shown
from .base import (
    Analysis,
    Findings,
    NotApplicable,
    Progress,
    Subject,
    require_demonstrations,
    require_heads,
)
from .flip_design import CELLS, Pairs, counterbalanced, partners
from .flip_shares import PAIRINGS, change, paired_columns
from .label_prompts import LabelAnswers, LabelSet, joined, label_answers, label_set
from .prompting import Chunk, label_columns
from .value_outputs import ChunkOutputs, HeadContrasts, read_outputs

if TYPE_CHECKING:
    from torch import Tensor

    from headloc.lm.batch import TokenBatch
    from headloc.tasks import Example

Array = NDArray[np.float64]

ROWS = 64
"""Pairs of a chunk."""

MEASURES = ("attention", "twin attention", "value", "twin value", "total",
            *(f"{part} {pairing}" for pairing in PAIRINGS for part in ("QK", "OV")))  # fmt: skip


@dataclass(frozen=True)
class LabelFlip(Analysis):
    """Options.

    Attributes:
        prompts: drawn examples; each makes four pairs of prompts.
    """

    prompts: int = 128
    name: ClassVar[str] = "label_flip"
    question: ClassVar[str] = "When labels are reversed, does attention change, or do values?"

    def __post_init__(self) -> None:
        if self.prompts < 2:
            raise HeadlocError("analysis.prompts of analysis=label_flip must be 2 or more.")

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        require_heads(subject)
        require_demonstrations(subject, 2)
        examples = subject.examples(self.prompts, "label flip")
        labels = label_set(subject.lm, subject.task, examples[0])
        cells = counterbalanced(subject, examples)
        total = len(CELLS) * len(examples)
        read = []
        for index, pairs in enumerate(cells.values()):
            before = index * len(examples)
            read.append(
                _read_cell(
                    subject,
                    labels,
                    pairs,
                    lambda done, before=before: progress(before + done, total),
                )
            )
        return shown.findings(subject, labels, read)


@dataclass
class CellReading:
    """One cell, filled chunk by chunk.

    Attributes:
        measures: by head and measure, [P].
        asked_P: label of the query in the base prompt.
        look: by head, attention on the tokens of each label in the base prompt, [P, L].
        base: what the model answers to the prompts.
        twin: what it answers to the twins.
    """

    measures: dict[HeadId, dict[str, list[Array]]]
    asked_P: NDArray[np.int64]
    look: dict[HeadId, list[Array]]
    base: list[LabelAnswers] = field(default_factory=list)
    twin: list[LabelAnswers] = field(default_factory=list)

    def of(self, head: HeadId, measure: str) -> Array:
        """Return a measure over all prompts."""
        return np.concatenate(self.measures[head][measure])

    def attention_on_labels(self, head: HeadId) -> Array:
        """Return attention by label, [P, L]."""
        return np.concatenate(self.look[head])

    def answers(self) -> tuple[LabelAnswers, LabelAnswers]:
        """Return the answers to prompts and twins."""
        return joined(self.base), joined(self.twin)


@torch.no_grad()
def _read_cell(subject: Subject, labels: LabelSet, pairs: Pairs, progress: object) -> CellReading:
    heads = subject.heads
    found = CellReading(
        {head: {name: [] for name in MEASURES} for head in heads},
        labels.asked(pairs.base),
        {head: [] for head in heads},
    )
    for start in range(0, len(pairs.base), ROWS):
        rows = slice(start, min(start + ROWS, len(pairs.base)))
        _read_pairs(subject, labels, found, pairs.base[rows], pairs.twin[rows])
        if callable(progress):
            progress(rows.stop)
    return found


def _read_pairs(
    subject: Subject,
    labels: LabelSet,
    found: CellReading,
    base: Sequence[Example],
    twin: Sequence[Example],
) -> None:
    lm, template = subject.lm, subject.task.template
    encoded, batch = encode_examples(lm, base, template)
    _, other = encode_examples(lm, twin, template)
    _check_layout(batch, other)
    columns_BN = label_columns(Chunk(slice(0, len(base)), tuple(base), encoded, batch, None))
    one = read_outputs(lm, batch, subject.heads, labels)
    # The twin is read with the same frozen norm, so that nothing but the head changes.
    two = read_outputs(lm, other, subject.heads, labels, one.directions_LBD)
    shown_BN, twin_BN = labels.shown(base), labels.shown(twin)
    asked = labels.asked(base)
    by_label = torch.tensor([partners(a, b) for a, b in zip(shown_BN.tolist(), twin_BN.tolist(),
                                                           strict=True)])  # fmt: skip
    for head in subject.heads:
        measured = _measure(one.heads[head], two.heads[head], columns_BN, by_label.to(lm.device),
                            torch.from_numpy(asked), torch.from_numpy(shown_BN))  # fmt: skip
        for name, sample_B in measured.items():
            found.measures[head][name].append(sample_B.cpu().numpy())
        attention_BN = one.heads[head].at(columns_BN)[0].cpu().numpy()
        found.look[head].append(
            np.stack([(attention_BN * (shown_BN == label)).sum(1)
                      for label in range(len(labels.names))], axis=1)
        )  # fmt: skip
    found.base.append(_answers(labels, one, batch, asked))
    found.twin.append(_answers(labels, two, other, labels.asked(twin)))


def _check_layout(batch: TokenBatch, other: TokenBatch) -> None:
    if batch.mask_BT.shape != other.mask_BT.shape or not torch.equal(batch.mask_BT, other.mask_BT):
        raise NotApplicable(
            "The labels have different numbers of tokens, so the tokens of a prompt and of its "
            "twin do not stand in the same places. Choose label words of equal length."
        )


def _answers(
    labels: LabelSet, chunk: ChunkOutputs, batch: TokenBatch, asked_B: NDArray[np.int64]
) -> LabelAnswers:
    # Answers of one token: the reading's own logits. Longer ones take a teacher-forced pass.
    return label_answers(labels, chunk.logits_BV[:, None], _first_token(batch), asked_B)


def _first_token(batch: TokenBatch) -> TokenBatch:
    from dataclasses import replace

    return replace(batch, target_BJ=batch.target_BJ[:, :1])


def _measure(
    one: HeadContrasts,
    two: HeadContrasts,
    columns_BN: Tensor,
    partner_BN: Tensor,
    asked_B: Tensor,
    shown_BN: Tensor,
) -> dict[str, Tensor]:
    """Return every measure of a head, [B] each.

    Attention and value: summed attention on, and mean contrast at, the tokens of the label that
    the base prompt asks for; in the twin, at the tokens that are that label there.
    """
    rows = torch.arange(len(asked_B))
    m_BT, twin_m_BT = one.contrast_LBT[asked_B, rows], two.contrast_LBT[asked_B, rows]
    own_BN = (shown_BN == asked_B[:, None]).to(columns_BN.device)
    moved_BN = columns_BN.gather(1, partner_BN)
    found = {
        "attention": (one.attention_BT.gather(1, columns_BN) * own_BN).sum(1),
        "twin attention": (two.attention_BT.gather(1, moved_BN) * own_BN).sum(1),
        "value": (m_BT.gather(1, columns_BN) * own_BN).sum(1) / own_BN.sum(1),
        "twin value": (twin_m_BT.gather(1, moved_BN) * own_BN).sum(1) / own_BN.sum(1),
    }
    columns = m_BT.shape[1]
    stay_BN = torch.arange(columns_BN.shape[1], device=columns_BN.device).expand_as(columns_BN)
    for pairing, other_BN in zip(PAIRINGS, (partner_BN, stay_BN), strict=True):
        index_BT = paired_columns(columns, columns_BN, other_BN)
        split = change(one.attention_BT, m_BT, two.attention_BT.gather(1, index_BT),
                       twin_m_BT.gather(1, index_BT))  # fmt: skip
        found["total"] = split.total_B
        found[f"QK {pairing}"], found[f"OV {pairing}"] = split.attention_B, split.value_B
    return found
