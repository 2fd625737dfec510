"""What does each demonstration tell the heads, and how much do they listen to it?

Per head: shares of token groups in the output, the peaking ratio (attention on labels over
attention elsewhere), the alignment of a demonstration's signal with its task's direction, and, for
arithmetic tasks, the offset that each demonstration says (`offset_decoding.py`) and the named
features of it that the head extracts (`feature_reading.py`).

Shapes: P prompts, N demonstrations, K tasks, G groups, r dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from headloc.errors import HeadlocError
from headloc.evaluation.intervals import Estimate
from headloc.heads import HeadId
from headloc.randomness import stream
from headloc.tasks import Arithmetic, Example

from . import signals_picture as picture
from .base import (
    Analysis,
    Findings,
    Picture,
    Progress,
    Subject,
    Table,
    require_demonstrations,
)
from .demonstrations import GROUP_NAMES, HeadSignals, read_demonstrations
from .feature_reading import feature_findings
from .head_spaces import HeadSpace, head_spaces, telling_heads
from .offset_decoding import Decoder, decoding_findings, mixed_examples, unit
from .periodic import FEWEST_NUMBERS, numbers_of
from .resampling import Resamples

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Signals(Analysis):
    """Options.

    Attributes:
        dimensions: dimensions r of the aggregation subspace.
        prompts: fresh prompts that are measured.
        fit_prompts: prompts that the decoders are fitted on, with mixed offsets for arithmetic.
    """

    dimensions: int = 6
    prompts: int = 512
    fit_prompts: int = 1024
    name: ClassVar[str] = "signals"
    question: ClassVar[str] = "What does each demonstration tell the heads?"

    def __post_init__(self) -> None:
        if min(self.dimensions, self.prompts, self.fit_prompts) < 1:
            raise HeadlocError("The options of analysis=signals must be 1 or more.")

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        require_demonstrations(subject)
        spaces = head_spaces(subject)
        total = self.fit_prompts + 2 * self.prompts

        def read(examples: Sequence[Example], before: int) -> list[HeadSignals]:
            return read_demonstrations(
                subject, spaces, self.dimensions, examples,
                progress=lambda done, _: progress(before + done, total),
            )  # fmt: skip

        fit_examples = self._of_all_tasks(subject, self.fit_prompts, "signals fit")
        row_of = {task: row for row, task in enumerate(subject.tasks)}
        rows_PN = np.array([[row_of[e.task]] * subject.task.shots for e in fit_examples])
        if isinstance(subject.task, Arithmetic):
            fit_examples, rows_PN = mixed_examples(subject.task, fit_examples, subject.seed + 1)
        fitted = read(fit_examples, 0)
        examples = self._of_all_tasks(subject, self.prompts, "signals")
        measured = read(examples, self.fit_prompts)
        decoder = Decoder.fit(spaces, self.dimensions, fitted, rows_PN)
        resamples = Resamples(len(examples), subject.seed)
        heads = [
            _head_figures(space, signals, decoder.centre(i), decoder.rows(examples), resamples)
            for i, (space, signals) in enumerate(zip(spaces, measured, strict=True))
        ]
        telling = set(telling_heads(subject)) or set(subject.heads)
        findings = _shares_findings(spaces, heads, telling, subject.task.shots, self.prompts)
        if not isinstance(subject.task, Arithmetic):
            return findings
        mixed, shown_PN = mixed_examples(subject.task, examples, subject.seed)
        spoken = read(mixed, self.fit_prompts + self.prompts)
        parts = [findings, decoding_findings(
            subject.task, subject.seed, spaces, decoder, spoken, shown_PN,
        )]  # fmt: skip
        if len(subject.tasks) >= FEWEST_NUMBERS:
            named = [space.head in telling for space in spaces]
            parts.append(
                feature_findings(
                    list(compress(spaces, named)), list(compress(spoken, named)), shown_PN,
                    numbers_of(subject), self.dimensions, subject.seed,
                )
            )  # fmt: skip
        return Findings(
            {key: value for part in parts for key, value in part.scalars.items()},
            tuple(table for part in parts for table in part.tables),
            tuple(shown for part in parts for shown in part.pictures),
            tuple(sentence for part in parts for sentence in part.sentences),
        )

    def _of_all_tasks(self, subject: Subject, n: int, use: str) -> list[Example]:
        """Draw examples of all tasks, each about equally often, in a random order."""
        held = len(subject.task.held_out)
        count = round(n * held / len(subject.tasks))
        found = subject.examples(n - count, use)
        if count:
            found += subject.examples(count, use, split="held_out")
        order = stream(subject.seed, "analysis", use, "order").permutation(len(found))
        return [found[i] for i in order]


@dataclass(frozen=True, slots=True)
class HeadFigures:
    """What is told of one head: estimates by name, and alignments by position."""

    shares: dict[str, Estimate]
    centred_shares: dict[str, Estimate]
    peaking: Estimate
    alignment: Estimate
    raw_alignment: Estimate
    by_position: tuple[Estimate, ...]


def _head_figures(
    space: HeadSpace,
    signals: HeadSignals,
    centre_r: Array,
    rows_P: NDArray[np.int64],
    resamples: Resamples,
) -> HeadFigures:
    size = signals.signal_PNr.shape[-1]
    basis = space.basis(size)
    direction_Kr = (space.centred_KD @ basis).numpy()
    raw_Kr = (space.points_KD @ basis).numpy()
    cosine_PN = (unit(signals.signal_PNr - centre_r) * unit(direction_Kr)[rows_P][:, None]).sum(-1)
    raw_PN = (unit(signals.signal_PNr) * unit(raw_Kr)[rows_P][:, None]).sum(-1)

    def part(numerator_PG: Array, denominator_P: Array) -> dict[str, Estimate]:
        return {
            group: resamples.ratio(numerator_PG[:, index], denominator_P)
            for index, group in enumerate(GROUP_NAMES)
        }

    return HeadFigures(
        shares=part(signals.numerator_PG, signals.denominator_P),
        centred_shares=part(signals.centred_numerator_PG, signals.centred_denominator_P),
        peaking=resamples.ratio(signals.on_labels_P, signals.elsewhere_P),
        alignment=resamples.mean(cosine_PN.mean(1)),
        raw_alignment=resamples.mean(raw_PN.mean(1)),
        by_position=tuple(resamples.mean(column) for column in cosine_PN.T),
    )


def _shares_findings(
    spaces: Sequence[HeadSpace],
    heads: Sequence[HeadFigures],
    telling: Collection[HeadId],
    shots: int,
    prompts: int,
) -> Findings:
    names = [str(space.head) for space in spaces]
    apart = [space.head in telling for space in spaces]
    marked = [name if tells else f"{name}*" for name, tells in zip(names, apart, strict=True)]
    scalars: dict[str, float] = {}
    shares: list[list[Any]] = []
    rows: list[list[Any]] = []
    positions: list[list[Any]] = []
    for name, found in zip(names, heads, strict=True):
        for kind, parts in (("task mean", found.shares), ("direction", found.centred_shares)):
            for group, e in parts.items():
                shares.append([name, kind, group, e.value, e.low, e.high, e.n])
        scalars |= found.shares["labels"].to_metrics(f"{name}/share/labels")
        scalars |= found.centred_shares["labels"].to_metrics(f"{name}/centred_share/labels")
        scalars |= found.peaking.to_metrics(f"{name}/peaking_ratio")
        scalars |= found.alignment.to_metrics(f"{name}/alignment")
        for measure, e in (("peaking_ratio", found.peaking), ("alignment", found.alignment),
                           ("alignment_raw", found.raw_alignment)):  # fmt: skip
            rows.append([name, measure, e.value, e.low, e.high, e.n])
        for index, e in enumerate(found.by_position):
            positions.append([name, index + 1, e.value, e.low, e.high, e.n])
    tell = list(compress(zip(names, heads, strict=True), apart))
    by_share = sorted(tell, key=lambda pair: pair[1].centred_shares["labels"].value)
    least, largest = (
        f"{found.centred_shares['labels']} ({name})" for name, found in (by_share[0], by_share[-1])
    )
    plain = [found.shares["labels"].value for _, found in tell]
    most = max(tell, key=lambda pair: pair[1].peaking.value)
    return Findings(
        scalars,
        (
            Table("shares", ("head", "toward", "tokens", "share", "low", "high", "n"), shares,
                  "Share of the head's output that comes from a group of tokens, signed; the "
                  "groups of a head sum to 1. Toward the task's mean output, or toward its "
                  "direction relative to the mean over tasks."),
            Table("heads", ("head", "measure", "value", "low", "high", "n"), rows,
                  "Mean attention on labels over mean attention elsewhere; cosine of a "
                  "demonstration's signal with its task's direction, centred and raw."),
            Table("positions", ("head", "demonstration", "alignment", "low", "high", "n"),
                  positions, "Centred alignment by position of the demonstration."),
        ),
        (
            Picture("shares", "Where the part of each head's output comes from that tells tasks "
                    "apart (share toward the task's direction), by group of tokens. * does not "
                    "tell tasks apart: its direction is chance.",
                    partial(picture.draw_shares, marked, [h.centred_shares for h in heads])),
            Picture("alignment", f"Attention on labels over attention elsewhere, and how well the "
                    f"signals of {shots} demonstrations point along their task's direction.",
                    partial(picture.draw_heads, marked, [h.peaking for h in heads],
                            [h.alignment for h in heads])),
        ),
        (
            f"In the {len(tell)} heads that tell tasks apart, label tokens carry {least} to "
            f"{largest} of what tells tasks apart in the output, and {min(plain):.1%} to "
            f"{max(plain):.1%} of the output along the task mean (n = {prompts}).",
            f"{most[0]} looks at labels the most: {most[1].peaking} times as much as at other "
            "tokens.",
            f"The signal of a demonstration points along its task's direction with a cosine of "
            f"{min(h.alignment.value for _, h in tell):.2f} to "
            f"{max(h.alignment.value for _, h in tell):.2f} in these heads.",
        ),
    )  # fmt: skip
