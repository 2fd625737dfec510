"""The exact top k neurons by log-probability increase, without a vocabulary-wide pass per neuron.

By Jensen's inequality the first-order term of Imp is an upper bound,

    Imp(v) <= logit_w(v) - E_p[logit(v)] = <v, d>,     d = pull(e_w - p)

with p the probabilities of the layer's base.  One matrix-vector product per layer gives the bound
of every neuron; neurons are rescored exactly from the largest bound down, until the next bound does
not beat the k-th best score.  What is left out cannot be among the top k, so the answer is that of
the full computation.  The bound says nothing about decreases.

Shapes: B rows, L layers, N neurons, T source columns (1 for feed-forward neurons), M = N T
candidates of a layer, S rescored at once, k, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import HeadlocError

from .candidates import Candidates
from .log_increase import PARTS_PER_PASS, increase
from .unembedding import Readout

if TYPE_CHECKING:
    pass

_SLACK = {torch.float64: 1e-11}
_SLACK_SINGLE = 1e-4
"""Rounding of a bound, as a share of the largest bound: it is given away, never taken."""


@dataclass(frozen=True, slots=True)
class TopNeurons:
    """The k best candidates of every row, best first.

    Attributes:
        layer_Bk: index of the decoder layer.
        neuron_Bk: index of the neuron within its layer.
        column_Bk: source column (0 for feed-forward neurons).
        score_Bk: exact log-probability increase, in nats.
        coefficient_Bk: coefficient of the neuron.
        rescored: candidates that were rescored per row.
        total: candidates there are per row.
    """

    layer_Bk: Tensor
    neuron_Bk: Tensor
    column_Bk: Tensor
    score_Bk: Tensor
    coefficient_Bk: Tensor
    rescored: int
    total: int


@torch.no_grad()
def top_neurons(
    readout: Readout, banks: Sequence[Candidates], k: int, parts_per_pass: int = PARTS_PER_PASS
) -> TopNeurons:
    """Return the exact top k over all layers.

    Args:
        readout: the frozen readout.
        banks: candidates layer by layer.
        k: how many, at least 1; all when there are fewer.
        parts_per_pass: rows of logits held at once.

    Raises:
        HeadlocError: for k or a chunk below 1, or without candidates.
    """
    _check(banks, k, parts_per_pass)
    bases = [readout.base(bank.base_BD).log_softmax(-1) for bank in banks]
    bound_BM = torch.cat(_bounds(readout, banks, bases), dim=1)
    rows, total = bound_BM.shape
    k = min(k, total)
    sorted_BM, order_BM = bound_BM.sort(dim=1, descending=True)
    slack = _SLACK.get(bound_BM.dtype, _SLACK_SINGLE) * bound_BM.abs().amax(1).double()
    most = max(1, parts_per_pass // rows)
    step = min(most, 2 * k)
    best_Bk = bound_BM.new_full((rows, k), -torch.inf, dtype=torch.float64)
    where_Bk = torch.zeros_like(best_Bk, dtype=torch.int64)
    start = 0
    while start < total:
        index_BS = order_BM[:, start : start + step]
        step = min(most, 2 * step)
        score_BS = _rescored(readout, banks, bases, index_BS)
        both = torch.cat([best_Bk, score_BS], 1), torch.cat([where_Bk, index_BS], 1)
        best_Bk, picked_Bk = both[0].topk(k, dim=1)
        where_Bk = both[1].gather(1, picked_Bk)
        start += index_BS.shape[1]
        if start < total and bool((sorted_BM[:, start] + slack <= best_Bk[:, -1]).all()):
            break
    return _named(banks, where_Bk, best_Bk, start, total)


@torch.no_grad()
def scores_of(
    readout: Readout,
    banks: Sequence[Candidates],
    index_BS: Tensor,
    parts_per_pass: int = PARTS_PER_PASS,
) -> Tensor:
    """Return the exact scores of some candidates, score_BS.

    Args:
        readout: the frozen readout.
        banks: candidates layer by layer.
        index_BS: which candidates, numbered through over all banks (`numbered`).
        parts_per_pass: rows of logits held at once.
    """
    bases = [readout.base(bank.base_BD).log_softmax(-1) for bank in banks]
    step = max(1, parts_per_pass // max(1, len(index_BS)))
    parts = [_rescored(readout, banks, bases, part) for part in index_BS.split(step, dim=1)]
    return torch.cat(parts, 1) if parts else index_BS.double()


def numbered(banks: Sequence[Candidates], layer: Tensor, neuron: Tensor) -> Tensor:
    """Return the numbers of feed-forward neurons over all banks, in the shape of `layer`.

    Raises:
        HeadlocError: for a layer without a bank.
    """
    starts: dict[int, int] = {}
    start = 0
    for bank in banks:
        starts[bank.layer] = start
        start += bank.coefficient_BNT[0].numel()
    found = torch.full_like(layer, -1)
    for known, first in starts.items():
        found = torch.where(layer == known, first + neuron, found)
    if bool((found < 0).any()):
        raise HeadlocError("A neuron is of a layer whose neurons cannot be told apart.")
    return found


@torch.no_grad()
def first_order(readout: Readout, banks: Sequence[Candidates]) -> list[Tensor]:
    """Return the first-order term of every candidate, bound_BM by bank.

    It is additive, unlike Imp, and an upper bound of it.
    """
    bases = [readout.base(bank.base_BD).log_softmax(-1) for bank in banks]
    return _bounds(readout, banks, bases)


def _bounds(readout: Readout, banks: Sequence[Candidates], bases: Sequence[Tensor]) -> list[Tensor]:
    return [
        bank.bounds(readout.pull(_gradient(readout, base)))
        for bank, base in zip(banks, bases, strict=True)
    ]


@torch.no_grad()
def every_neuron(
    readout: Readout, banks: Sequence[Candidates], parts_per_pass: int = PARTS_PER_PASS
) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield what every candidate adds to the logits: (bank, candidates, logits_BSV), in order.

    This is the full computation that `top_neurons` avoids.
    """
    for number, bank in enumerate(banks):
        rows, count = bank.coefficient_BNT.flatten(1).shape
        step = max(1, parts_per_pass // rows)
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            index_S = torch.arange(part.start, part.stop, device=bank.base_BD.device)
            yield number, part, readout.parts(bank.parts(index_S.expand(rows, -1)))


@torch.no_grad()
def full_top_neurons(
    readout: Readout, banks: Sequence[Candidates], k: int, parts_per_pass: int = PARTS_PER_PASS
) -> TopNeurons:
    """Return the same as `top_neurons` by scoring every candidate: for tests and benchmarks."""
    _check(banks, k, parts_per_pass)
    bases = [readout.base(bank.base_BD).log_softmax(-1) for bank in banks]
    score_BM = torch.cat(
        [increase(readout, bases[number], logits_BSV)
         for number, _, logits_BSV in every_neuron(readout, banks, parts_per_pass)], dim=1,
    )  # fmt: skip
    best_Bk, where_Bk = score_BM.topk(min(k, score_BM.shape[1]), dim=1)
    return _named(banks, where_Bk, best_Bk, score_BM.shape[1], score_BM.shape[1])


def _check(banks: Sequence[Candidates], k: int, parts_per_pass: int) -> None:
    if k < 1 or parts_per_pass < 1:
        raise HeadlocError(f"top={k} neurons, {parts_per_pass} at a time: both must be 1 or more.")
    if not banks:
        raise HeadlocError("This model has no layer whose neurons can be told apart.")


def _gradient(readout: Readout, base_BV: Tensor) -> Tensor:
    """Return e_w - p, [B, V]."""
    return (-base_BV.exp()).scatter_add(
        1, readout.target_B[:, None], torch.ones_like(base_BV[:, :1])
    )


def _rescored(
    readout: Readout, banks: Sequence[Candidates], bases: Sequence[Tensor], index_BS: Tensor
) -> Tensor:
    """Return exact scores of candidates that are numbered through over all layers."""
    v_BSD = torch.zeros(*index_BS.shape, banks[0].base_BD.shape[1],
                        dtype=torch.float64, device=index_BS.device)  # fmt: skip
    owner_BS = torch.zeros_like(index_BS)
    start = 0
    for number, bank in enumerate(banks):
        size = bank.coefficient_BNT[0].numel()
        mine_BS = (index_BS >= start) & (index_BS < start + size)
        for row in mine_BS.any(1).nonzero()[:, 0].tolist():
            local_S = index_BS[row, mine_BS[row]] - start
            v_BSD[row, mine_BS[row]] = _one_row(bank, row).parts(local_S[None])[0]
        owner_BS[mine_BS] = number
        start += size
    logits_BSV = readout.parts(v_BSD)
    own_BS = logits_BSV.gather(2, readout.target_B[:, None, None].expand(*index_BS.shape, 1))[
        ..., 0
    ]
    for row in range(len(index_BS)):
        base_SV = torch.stack([bases[number][row] for number in owner_BS[row].tolist()])
        logits_BSV[row] += base_SV
    return own_BS - torch.logsumexp(logits_BSV, dim=-1)


def _one_row(bank: Candidates, row: int) -> Candidates:
    part = slice(row, row + 1)
    return Candidates(bank.layer, bank.base_BD[part], bank.scale_BD[part],
                      bank.coefficient_BNT[part], bank.values_ND)  # fmt: skip


def _named(
    banks: Sequence[Candidates], where_Bk: Tensor, best_Bk: Tensor, rescored: int, total: int
) -> TopNeurons:
    layer, neuron, column = (torch.zeros_like(where_Bk) for _ in range(3))
    coefficient = torch.zeros_like(best_Bk)
    start = 0
    for bank in banks:
        m_BM = bank.coefficient_BNT.flatten(1).double()
        mine = (where_Bk >= start) & (where_Bk < start + m_BM.shape[1])
        local = (where_Bk - start).clamp(0, m_BM.shape[1] - 1)
        columns = bank.coefficient_BNT.shape[2]
        layer = torch.where(mine, bank.layer, layer)
        neuron = torch.where(mine, local // columns, neuron)
        column = torch.where(mine, local % columns, column)
        coefficient = torch.where(mine, m_BM.gather(1, local), coefficient)
        start += m_BM.shape[1]
    return TopNeurons(layer, neuron, column, best_Bk, coefficient, rescored, total)
