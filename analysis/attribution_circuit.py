"""From an attribution to a circuit: the heads that raise the answer's log-probability the most.

Shapes: A heads in flat order.
"""

from __future__ import annotations

import numpy as np
import torch

from headloc.circuit import Circuit

from .attribution_read import Array
from .base import Subject


def circuit_of_scores(subject: Subject, score_A: Array, heads: int, prompts: int) -> Circuit:
    """Return the top heads as a circuit, as any other way of finding heads would hand it on.

    Args:
        subject: model and task.
        score_A: mean log-probability increase of every head, in nats.
        heads: how many are taken; ties in flat order.
        prompts: prompts behind the scores.
    """
    order = np.argsort(-score_A, kind="stable")[:heads].tolist()
    gates_A = torch.zeros(len(score_A))
    gates_A[order] = 1.0
    return Circuit(
        heads=tuple(sorted(subject.lm.layout.head(index) for index in order)),
        gates=gates_A,
        scores=torch.from_numpy(score_A).float(),
        model=subject.lm.source.to_dict(),
        objective={"name": "in_place", "off_value": "zero", "positions": "last"},
        task=subject.task.describe(),
        selection={"rule": "log_probability_increase", "heads": len(order), "prompts": prompts},
        seed=subject.seed,
    )
