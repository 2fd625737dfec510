"""Scores of feed-forward neurons that the literature compares with log-probability increase.

For a neuron with coefficient m and subvalue v on a base x, with w the token that is explained
(Yu & Ananiadou 2024, arXiv 2312.12141):

    log_probability_increase   log p(w | x + m v) - log p(w | x)
    log_probability            log p(w | m v), the neuron read alone
    probability_increase       p(w | x + m v) - p(w | x)
    norm                       |v|
    coefficient                |m|
    rank                       rank of w among all tokens when m v is read alone, the best first
    coefficient_norm           |m| |v|
    coefficient_rank           |m| / rank

The final norm is frozen throughout: a norm of the neuron alone would cancel its size.

Shapes: B rows, S neurons at a time, M neurons of all layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .candidates import Candidates
from .log_increase import PARTS_PER_PASS
from .top_neurons import every_neuron
from .unembedding import Readout

SCORES = (
    "log_probability_increase", "log_probability", "probability_increase", "norm", "coefficient",
    "rank", "coefficient_norm", "coefficient_rank",
)  # fmt: skip


@torch.no_grad()
def neuron_scores(
    readout: Readout, banks: Sequence[Candidates], parts_per_pass: int = PARTS_PER_PASS
) -> dict[str, Tensor]:
    """Return every score of every neuron, [B, M] by name; larger is more important.

    This reads every neuron in the vocabulary, which `top_neurons` avoids for the one score that
    it knows.

    Args:
        readout: the frozen readout.
        banks: neurons layer by layer, of one source column.
        parts_per_pass: rows of logits held at once.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in SCORES}
    bases = [readout.base(bank.base_BD).log_softmax(-1) for bank in banks]
    for number, part, logits_BSV in every_neuron(readout, banks, parts_per_pass):
        bank = banks[number]
        m_BS = bank.coefficient_BNT[:, part, 0].double().abs()
        norm_BS = _norms(bank, part)
        target_BS1 = readout.target_B[:, None, None].expand(-1, logits_BSV.shape[1], 1)
        own_BS1 = logits_BSV.gather(2, target_BS1)
        base_B1V = bases[number][:, None]
        before_B1 = bases[number].gather(1, readout.target_B[:, None])
        increase_BS = own_BS1[..., 0] - torch.logsumexp(base_B1V + logits_BSV, -1)
        rank_BS = 1.0 + (logits_BSV > own_BS1).sum(-1).double()
        values = (
            increase_BS,
            own_BS1[..., 0] - torch.logsumexp(logits_BSV, -1),
            (before_B1 + increase_BS).exp() - before_B1.exp(),
            norm_BS,
            m_BS,
            -rank_BS,
            m_BS * norm_BS,
            m_BS / rank_BS,
        )
        for name, value_BS in zip(SCORES, values, strict=True):
            found[name].append(value_BS)
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


def _norms(bank: Candidates, part: slice) -> Tensor:
    """Return |c v| of some neurons, norm_BS, with c the scale behind the block."""
    squared_ND = bank.values_ND[part].double().square()
    return (bank.scale_BD.square() @ squared_ND.T).sqrt()
