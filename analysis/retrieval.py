"""How well do scores find the demonstrations of the query's class?  Measures of retrieval.

Every measure is taken prompt by prompt, over the demonstrations of that prompt, and averaged over
prompts afterwards, so that intervals are over prompts.  A prompt without demonstrations of either
kind has no figure (NaN).

Shapes: P prompts, N demonstrations, L labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MEASURES = ("auroc", "precision_at_1", "reciprocal_rank", "knn_accuracy")
"""Names of the measures of `retrieval`."""


def retrieval(
    score_PN: Array, shown_PN: NDArray[np.int64], asked_P: NDArray[np.int64], neighbours: int = 1
) -> dict[str, Array]:
    """Return every measure by name, [P] each.

    Args:
        score_PN: score of the query with each demonstration; larger is nearer.
        shown_PN: label of each demonstration.
        asked_P: label of the query.
        neighbours: demonstrations that vote in `knn_accuracy`.
    """
    same_PN = shown_PN == asked_P[:, None]
    return {
        "auroc": auroc(score_PN, same_PN),
        "precision_at_1": precision_at_1(score_PN, same_PN),
        "reciprocal_rank": reciprocal_rank(score_PN, same_PN),
        "knn_accuracy": knn_hit(score_PN, shown_PN, asked_P, neighbours),
    }


def auroc(score_PN: Array, same_PN: NDArray[np.bool_]) -> Array:
    """Return the chance that a demonstration of the class scores above one of another; ties half.

    This is the area under the ROC curve of each prompt, .5 for scores that know nothing.
    """
    above_PNN = (score_PN[:, :, None] > score_PN[:, None, :]).astype(np.float64)
    above_PNN += 0.5 * (score_PN[:, :, None] == score_PN[:, None, :])
    pairs_PNN = same_PN[:, :, None] & ~same_PN[:, None, :]
    return _ratio((above_PNN * pairs_PNN).sum((1, 2)), pairs_PNN.sum((1, 2)))


def precision_at_1(score_PN: Array, same_PN: NDArray[np.bool_]) -> Array:
    """Return whether the nearest demonstration is of the class; of several, their share."""
    nearest_PN = score_PN == score_PN.max(1, keepdims=True)
    hit_P = _ratio((nearest_PN & same_PN).sum(1), nearest_PN.sum(1))
    return np.where(same_PN.any(1), hit_P, np.nan)


def reciprocal_rank(score_PN: Array, same_PN: NDArray[np.bool_]) -> Array:
    """Return one over the rank of the nearest demonstration of the class; ties share ranks."""
    best_P1 = np.where(same_PN, score_PN, -np.inf).max(1, keepdims=True)
    before_P = (score_PN > best_P1).sum(1)
    tied_P = ((score_PN == best_P1) & ~same_PN).sum(1)
    return np.where(same_PN.any(1), 1 / (1 + before_P + 0.5 * tied_P), np.nan)


def knn_hit(
    score_PN: Array, shown_PN: NDArray[np.int64], asked_P: NDArray[np.int64], neighbours: int = 1
) -> Array:
    """Return whether the nearest demonstrations vote for the query's label.

    Equal votes are decided by the sum of scores among those that voted.
    """
    order_PN = np.argsort(-score_PN, axis=1, kind="stable")[:, :neighbours]
    voted_PK = np.take_along_axis(shown_PN, order_PN, axis=1)
    score_PK = np.take_along_axis(score_PN, order_PN, axis=1)
    # Scores decide ties only: brought into 0 .. 1 they can never outweigh a vote.
    low, high = score_PK.min(1, keepdims=True), score_PK.max(1, keepdims=True)
    weight_PK = (score_PK - low) / np.where(high > low, high - low, 1.0) / (neighbours + 1)
    labels = np.arange(1 + max(int(shown_PN.max()), int(asked_P.max())))
    chosen_PKL = voted_PK[..., None] == labels
    votes_PL = (chosen_PKL * (1 + weight_PK[..., None])).sum(1)
    return (votes_PL.argmax(1) == asked_P).astype(np.float64)


def _ratio(top: NDArray[np.generic], bottom: NDArray[np.generic]) -> Array:
    bottom = np.asarray(bottom, dtype=np.float64)
    return np.asarray(top, dtype=np.float64) / np.where(bottom == 0, np.nan, bottom)
