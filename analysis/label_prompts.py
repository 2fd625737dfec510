"""Prompts whose answers are labels of a closed set: tokens of labels, contrasts, two accuracies.

The contrast of label l is its log-odds against each other label, averaged,

    M_l = mean over k != l of log p(l) / p(k) = logit_l - mean over k != l of logit_k

which for two labels is log p(foo) - log p(bar) (Yu & Ananiadou 2024) and is linear in the logits
for any number of labels.  A label of several tokens is known by its first: labels that begin alike
are refused.

Shapes: B rows, N demonstrations, L labels, J answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headloc.evaluation.metrics import answered_correctly
from headloc.objectives.prompts import encode_examples

from .base import NotApplicable

if TYPE_CHECKING:
    from headloc.lm.batch import TokenBatch
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Example, TaskFamily

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of a task.

    Attributes:
        names: the L label words.
        ids_L: first token of each, as the model would answer it.
    """

    names: tuple[str, ...]
    ids_L: Tensor

    def contrasts(self) -> Tensor:
        """Return the weights of the contrasts, contrast_LL: M_l = sum over k of c_lk logit_k."""
        count = len(self.names)
        eye_LL = torch.eye(count, dtype=torch.float64, device=self.ids_L.device)
        return eye_LL - (1 - eye_LL) / (count - 1)

    def contrast(self, logits_BV: Tensor) -> Tensor:
        """Return M_BL of logits."""
        return logits_BV.index_select(-1, self.ids_L).double() @ self.contrasts().T

    def over_vocabulary(self, rows: int, vocabulary: int) -> Tensor:
        """Return the contrasts as weights over all tokens, c_LBV for a number of equal rows."""
        c_LL = self.contrasts()
        c_LV = c_LL.new_zeros(len(c_LL), vocabulary)
        c_LV[:, self.ids_L] = c_LL
        return c_LV[:, None].expand(-1, rows, -1)

    def shown(self, examples: Sequence[Example]) -> Index:
        """Return the label of each demonstration, shown_BN.

        Raises:
            NotApplicable: for prompts with different numbers of demonstrations.
        """
        rows = [[self._row(d.output) for d in example.demonstrations] for example in examples]
        if len({len(row) for row in rows}) > 1:
            raise NotApplicable("The prompts show different numbers of demonstrations.")
        return np.array(rows, dtype=np.int64).reshape(len(examples), -1)

    def asked(self, examples: Sequence[Example]) -> Index:
        """Return the label of each query, asked_B."""
        return np.array([self._row(example.answer) for example in examples], dtype=np.int64)

    def _row(self, name: str) -> int:
        if name not in self.names:
            raise NotApplicable(f"{name!r} is none of the labels {', '.join(self.names)}.")
        return self.names.index(name)


def label_set(lm: FrozenLM, task: TaskFamily, example: Example) -> LabelSet:
    """Return the labels of a task whose answers are a closed set.

    Args:
        lm: the frozen model.
        task: the task family.
        example: an example of it, behind which the labels are tokenised.

    Raises:
        NotApplicable: when the task has no such set, or labels begin with the same token.
    """
    names = task.answers(example.task)
    if names is None or len(names) < 2:
        raise NotApplicable(
            "This analysis needs a task with a closed set of labels, such as task=labels."
        )
    variants = [replace(example, answer=name) for name in names]
    _, batch = encode_examples(lm, variants, task.template)
    ids_L = batch.target_BJ[:, 0]
    if len(set(ids_L.tolist())) < len(names):
        raise NotApplicable(
            f"Some of the labels {', '.join(names)} begin with the same token, so the first answer "
            "token does not tell them apart. Choose other label words."
        )
    return LabelSet(tuple(names), ids_L)


@dataclass(frozen=True, slots=True)
class LabelAnswers:
    """What the model answers.

    Attributes:
        full_B: right among the whole vocabulary, every token of the answer.
        within_B: right among the labels, by their first tokens.
        predicted_B: the label that is answered among the labels.
        contrast_BL: contrasts of the labels.
    """

    full_B: NDArray[np.bool_]
    within_B: NDArray[np.bool_]
    predicted_B: Index
    contrast_BL: NDArray[np.float64]


def label_answers(
    labels: LabelSet, logits_BJV: Tensor, batch: TokenBatch, asked_B: Index
) -> LabelAnswers:
    """Return what logits at the predicting columns answer."""
    contrast_BL = labels.contrast(logits_BJV[:, 0])
    predicted_B = contrast_BL.argmax(-1).cpu().numpy()
    full_B = answered_correctly(logits_BJV, batch.target_BJ).cpu().numpy()
    return LabelAnswers(full_B, predicted_B == asked_B, predicted_B, contrast_BL.cpu().numpy())


def joined(parts: Sequence[LabelAnswers]) -> LabelAnswers:
    """Return the answers of several chunks as one."""
    names = ("full_B", "within_B", "predicted_B", "contrast_BL")
    return LabelAnswers(*(np.concatenate([getattr(part, n) for part in parts]) for n in names))


def classes_of(example: Example) -> dict[str, str]:
    """Return the class behind each label where the task's name tells, else the label itself."""
    pairs = [part.split("=") for part in example.task.split(",") if part.count("=") == 1]
    named = {label: name for name, label in pairs}
    shown = {d.output for d in example.demonstrations} | {example.answer}
    return {label: named.get(label, label) for label in shown}
