"""Do later demonstrations suppress what earlier ones got wrong? (a claim of Hu et al. 2025)

    a_i = <Q^T s_i, u_k>    the signal of demonstration i along its task's direction
    b_i = alpha_i a_i       the same as the head weighs it

centred per task and position.  Three statistics, the attention-free ones first: the correlation of
a_i and a_j over prompts by lag; the cancellation Var(sum a) / sum Var(a), 1 for independent
signals; and the intervention: label i is made wrong, and

    kappa_ij = - sum (change of a_j) (change of a_i) / sum (change of a_i)^2

is the share of the error that demonstration j > i takes back.  For j < i it must be exactly zero.

Nulls: softmax competition alone correlates the *weighted* signals with -1 / (n - 1), so these prove
nothing by themselves, and b is also told with every a at its mean; demonstrations shuffled across
prompts; another right demonstration in the place of the wrong one.

Shapes: P prompts, N demonstrations, r dimensions, K tasks, n shuffles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from headloc.errors import HeadlocError, TaskError
from headloc.randomness import stream
from headloc.tasks import Arithmetic, Demonstration, Example

from . import self_correction_shown as shown
from .base import (
    Analysis,
    Findings,
    NotApplicable,
    Progress,
    Subject,
    require_demonstrations,
)
from .demonstrations import HeadSignals, read_demonstrations
from .head_spaces import HeadSpace, chosen_heads, head_spaces
from .pairing import (
    Array,
    Pairing,
    Rows,
    along,
    centred,
    earlier_moved,
    shuffled_null,
    statistics,
    taken_back,
    taken_back_by_all,
)
from .resampling import Resamples
from .self_correction_picture import ALL_HEADS

_TRIES = 1000


@dataclass(frozen=True)
class SelfCorrection(Analysis):
    """Options.

    Attributes:
        dimensions: dimensions r of the aggregation subspace.
        heads: heads that are read: telling (those that tell tasks apart), all, or a list.
        shots: numbers of demonstrations n to look at.
        prompts: prompts per number of demonstrations.
        corrupted_prompts: prompts of the intervention, which changes every demonstration at the
            task's own number of them, and the first at the other numbers.
        orders: orders of the same demonstrations that the intervention is repeated in.
        shuffles: shuffles of the null.
    """

    dimensions: int = 6
    heads: str | tuple[str, ...] | list[str] = "telling"
    shots: tuple[int, ...] | list[int] = (2, 5, 8)
    prompts: int = 512
    corrupted_prompts: int = 128
    orders: int = 2
    shuffles: int = 1000
    name: ClassVar[str] = "self_correction"
    question: ClassVar[str] = "Do later demonstrations correct earlier ones?"

    def __post_init__(self) -> None:
        counts = (self.dimensions, self.prompts, self.corrupted_prompts, self.orders, self.shuffles)
        if min(counts) < 1 or not self.shots or min(self.shots) < 2:
            raise HeadlocError(
                "The options of analysis=self_correction must be 1 or more, and analysis.shots a "
                "list of numbers of demonstrations, 2 or more each."
            )

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question."""
        require_demonstrations(subject, 2)
        task = subject.task
        if not isinstance(task, Arithmetic):
            raise NotApplicable(
                f"A wrong label needs tasks that label every input; the family {task.name} does "
                "not say what another task's label would be. Use add_k, subtract_k or multiply_k."
            )
        chosen = chosen_heads(subject, self.heads)
        spaces = [space for space in head_spaces(subject) if space.head in chosen]
        numbers = dict.fromkeys((*self.shots, task.shots))
        places = {n: range(n) if n == task.shots else range(1) for n in numbers}
        passes = sum(1 + 2 * len(at) for at in places.values())
        total = len(self.shots) * self.prompts + self.orders * passes * self.corrupted_prompts
        done = [0]

        def read(examples: Sequence[Example], attention: bool) -> list[HeadSignals]:
            before = done[0]
            found = read_demonstrations(
                subject, spaces, self.dimensions, examples, attention=attention,
                progress=lambda rows, _: progress(before + rows, total),
            )  # fmt: skip
            done[0] += len(examples)
            return found

        company = [self._company(subject, spaces, read, shots) for shots in self.shots]
        corrections = [
            one
            for shots, at in places.items()
            for one in self._intervene(subject, task, spaces, read, shots, at)
        ]
        return shown.findings(
            shown.corrected([one for some in company for one in some]), corrections, task.shots
        )

    def _company(
        self,
        subject: Subject,
        spaces: Sequence[HeadSpace],
        read: Callable[[Sequence[Example], bool], list[HeadSignals]],
        shots: int,
    ) -> list[shown.Company]:
        """Return the correlations of the signals of demonstrations that stand together."""
        try:
            examples = subject.examples(self.prompts, f"self-correction {shots}", shots=shots)
        except TaskError as error:
            raise HeadlocError(f"analysis.shots holds {shots}: {error}") from None
        signals = read(examples, True)
        task_P = _rows(subject, examples)
        resamples = Resamples(len(examples), subject.seed)
        rng = stream(subject.seed, "analysis", "self-correction", "shuffles", str(shots))
        names: list[str] = []
        plain: list[Array] = []
        weighted: list[Pairing | None] = []
        steady: list[Pairing | None] = []
        for name, signal_PNr, direction_Kr, attention_PN in _readings(
            spaces, signals, self.dimensions
        ):
            raw_PN = along(signal_PNr, direction_Kr, task_P)
            a_PN = centred(raw_PN, task_P)
            names.append(name)
            plain.append(a_PN)
            if attention_PN is None:
                weighted.append(None)
                steady.append(None)
                continue
            weighted.append(statistics(centred(attention_PN * raw_PN, task_P), resamples))
            # Every signal at its mean: what is left is the competition for attention.
            steady.append(statistics(centred(attention_PN * (raw_PN - a_PN), task_P), resamples))
        nulls = shuffled_null(np.stack(plain), task_P, self.shuffles, rng)
        return [
            shown.Company(
                name, shots, statistics(plain[i], resamples), weighted[i], steady[i],
                nulls[0][:, i], nulls[1][:, i],
            )
            for i, name in enumerate(names)
        ]  # fmt: skip

    def _intervene(
        self,
        subject: Subject,
        task: Arithmetic,
        spaces: Sequence[HeadSpace],
        read: Callable[[Sequence[Example], bool], list[HeadSignals]],
        shots: int,
        places: Sequence[int],
    ) -> list[shown.Correction]:
        """Return kappa with wrong labels and with other right demonstrations, per head."""
        base = subject.examples(
            self.corrupted_prompts, f"self-correction corrupted {shots}", shots=shots
        )
        rng = stream(subject.seed, "analysis", "self-correction", "corruption", str(shots))
        changes: dict[tuple[str, str, int], list[Array]] = {}
        directions: list[tuple[str, Array]] = []
        task_P = _rows(subject, base)
        for _ in range(self.orders):
            ordered = [_reordered(example, rng) for example in base]
            plain = list(_readings(spaces, read(ordered, False), self.dimensions))
            directions = [(name, direction_Kr) for name, _, direction_Kr, _ in plain]
            for at in places:
                variants = {
                    "wrong label": [_mislabelled(task, e, at, rng) for e in ordered],
                    "other right one": [_replaced(subject, e, at, rng) for e in ordered],
                }
                for kind, examples in variants.items():
                    other = _readings(spaces, read(examples, False), self.dimensions)
                    for (name, before, _, _), (_, after, _, _) in zip(plain, other, strict=True):
                        changes.setdefault((name, kind, at), []).append(after - before)
        # Orders of one prompt are resampled together.
        resamples = Resamples(len(base), subject.seed)
        found = []
        for name, direction_Kr in directions:
            for kind in ("wrong label", "other right one"):
                for at in places:
                    each_OPNr = np.stack(changes[name, kind, at])
                    lined_OPN = np.stack([along(c, direction_Kr, task_P) for c in each_OPNr])
                    found.append(
                        shown.Correction(
                            head=name,
                            kind=kind,
                            shots=shots,
                            corrupted=at,
                            kappa=taken_back(lined_OPN[..., None], at, resamples),
                            kappa_subspace=taken_back(each_OPNr, at, resamples),
                            net=taken_back_by_all(each_OPNr, at, resamples),
                            by_order=tuple(taken_back(c[None], at, resamples) for c in each_OPNr),
                            earlier_moved=earlier_moved(each_OPNr, at),
                        )
                    )
        return found


def _readings(
    spaces: Sequence[HeadSpace], signals: Sequence[HeadSignals], size: int
) -> list[tuple[str, Array, Array, Array | None]]:
    """Return (name, signal_PNr, direction_Kr, attention_PN) of every head, and of all together.

    All together: the signals of all heads along the first r components of their joint directions.
    """
    found: list[tuple[str, Array, Array, Array | None]] = []
    for space, one in zip(spaces, signals, strict=True):
        direction_Kr = (space.centred_KD @ space.basis(size)).numpy()
        found.append((str(space.head), one.signal_PNr, direction_Kr, one.attention_PN))
    if len(spaces) > 1:
        wide_KF = np.concatenate([direction_Kr for _, _, direction_Kr, _ in found], axis=-1)
        # Heads that do not tell tasks apart have short directions, and so hardly count.
        _, _, rows_RF = np.linalg.svd(wide_KF - wide_KF.mean(0), full_matrices=False)
        basis_Fr = rows_RF[:size].T
        signal_PNF = np.concatenate([signal_PNr for _, signal_PNr, _, _ in found], axis=-1)
        found.append((ALL_HEADS, signal_PNF @ basis_Fr, wide_KF @ basis_Fr, None))
    return found


def _rows(subject: Subject, examples: Sequence[Example]) -> Rows:
    row_of = {task: row for row, task in enumerate(subject.tasks)}
    return np.array([row_of[example.task] for example in examples])


def _reordered(example: Example, rng: np.random.Generator) -> Example:
    order = rng.permutation(example.shots)
    return replace(example, demonstrations=tuple(example.demonstrations[i] for i in order))


def _mislabelled(task: Arithmetic, example: Example, at: int, rng: np.random.Generator) -> Example:
    """Give one demonstration the label of another number."""
    own = task.offset(example.task)
    others = [k for k in map(task.offset, (*task.train, *task.held_out)) if k != own]
    pair = example.demonstrations[at]
    wrong = str(task.apply(int(pair.input), others[rng.integers(len(others))]))
    return _with(example, at, Demonstration(pair.input, wrong))


def _replaced(subject: Subject, example: Example, at: int, rng: np.random.Generator) -> Example:
    """Put another right demonstration of the same task in the place of one."""
    shown_inputs = {pair.input for pair in example.demonstrations} | {example.query}
    for _ in range(_TRIES):
        other = subject.task.example(example.task, rng, items="score").demonstrations
        fresh = [pair for pair in other if pair.input not in shown_inputs]
        if fresh:
            return _with(example, at, fresh[0])
    raise HeadlocError(
        f"The task {example.task} has no inputs beside the {example.shots} demonstrations of a "
        "prompt, so none can be exchanged. Use fewer demonstrations (task.shots, analysis.shots)."
    )


def _with(example: Example, at: int, pair: Demonstration) -> Example:
    shown_pairs = list(example.demonstrations)
    shown_pairs[at] = pair
    return replace(example, demonstrations=tuple(shown_pairs))
