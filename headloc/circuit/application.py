"""Run a plain model under a circuit: every gated component outside it at its off-value.

Shape legend: A heads, M feed-forward blocks, B rows, T columns of the current pass, N gated columns
of it, H heads of a layer, d head width, D model width.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.circuit.answering import AnswerColumns, following
from headloc.errors import CircuitError
from headloc.lm.batch import Role
from headloc.lm.frozen import FrozenLM
from headloc.lm.head_tap import tap_heads
from headloc.lm.hooks import splice
from headloc.lm.mlp_tap import tap_mlps
from headloc.objectives import RoleMeans
from headloc.objectives.off_values import ESTIMATED

if TYPE_CHECKING:
    from headloc.circuit.circuit import Circuit

FROM_MEANS = ("function_vector", "patch")
"""Objectives that carry task means into zero-shot prompts instead of closing heads."""


@contextmanager
def closed_outside(circuit: Circuit, lm: FrozenLM, *, answer_tokens: int = 1) -> Iterator[None]:
    """Close what is outside the circuit (see `Circuit.apply`)."""
    _check_objective(circuit)
    if answer_tokens < 1:
        raise CircuitError(f"answer_tokens={answer_tokens} must be 1 or more.")
    heads_A, mlps_M = circuit.components(lm).split(circuit.mask(lm).bool())
    means = _means(circuit, lm)
    everywhere = circuit.objective.get("positions", "last") != "last"
    columns = AnswerColumns(answer_tokens)
    heads = _Closing(
        [kept_H[:, None] for kept_H in heads_A.split([x.heads for x in lm.layout.layers])],
        None if means is None else means.means,
        None if everywhere else columns,
    )
    with ExitStack() as stack:
        if not everywhere:
            stack.enter_context(following(lm.model, columns))
        stack.enter_context(tap_heads(lm, heads.edit))
        if circuit.feed_forward is not None:
            mlps = _Closing(
                list(mlps_M[:, None]),
                None if means is None else means.mlps,
                None if everywhere else columns,
            )
            stack.enter_context(tap_mlps(lm, mlps.edit))
        yield


class _Closing:
    """Replaces what is not kept by its off-value, at the columns that are gated.

    Args:
        kept: per layer what is kept, a bool tensor that broadcasts to one column's output.
        means: per layer the off-values by role, mean_RHd or mean_RD; zero when None.
        columns: knows the gated columns; None when all are.
    """

    def __init__(
        self,
        kept: Sequence[Tensor],
        means: Sequence[Tensor] | None,
        columns: AnswerColumns | None,
    ) -> None:
        self._kept, self._columns = kept, columns
        last, answer = int(Role.LAST), int(Role.ANSWER)
        self._means = means and [mean_R[[last, answer]] for mean_R in means]

    def edit(self, position: int, out_BT: Tensor) -> Tensor | None:
        """Return the output z_BTHd or m_BTD of one layer with its closed parts replaced."""
        total, columns = out_BT.shape[1], self._columns
        first = 0 if columns is None else columns.first
        if first >= total:
            return None
        part_BN = out_BT[:, first:]
        kept = self._kept[position].to(out_BT.device)
        off_N = torch.zeros_like(part_BN[:1])
        if self._means is not None and columns is not None:
            role_N = torch.ones(total - first, dtype=torch.long, device=out_BT.device)
            role_N[0] = 0 if columns.starts else 1
            off_N = self._means[position].to(out_BT.device, out_BT.dtype)[role_N][None]
        return splice(out_BT, torch.where(kept, part_BN, off_N), first, total)


def _check_objective(circuit: Circuit) -> None:
    name = circuit.objective.get("name")
    if name in FROM_MEANS:
        raise CircuitError(
            f"This circuit was found with objective={name}: its heads' task means are put into "
            "zero-shot prompts, which is not what closing the other heads does. Score it with "
            "`headloc evaluate`."
        )
    off_value = circuit.objective.get("off_value")
    if circuit.objective.get("positions", "last") != "last" and off_value != "zero":
        raise CircuitError(
            "This circuit closes heads at every position with off-values that depend on the role "
            "of a token in a task's prompt; free text has no such roles. Score it with "
            "`headloc evaluate`."
        )
    if off_value not in ("zero", *ESTIMATED):
        raise CircuitError(
            f"A circuit with off_value={off_value!r} needs counterfactual prompts, which exist in "
            "an evaluation only. Use `headloc evaluate`."
        )


def _means(circuit: Circuit, lm: FrozenLM) -> RoleMeans | None:
    """Return the off-values of the circuit; None where they are zero."""
    if circuit.objective.get("off_value") == "zero":
        return None
    means = RoleMeans.from_tensors(circuit.tensors, lm, mlps=circuit.feed_forward is not None)
    found_on = circuit.model.get("fingerprint")
    if found_on is not None and found_on != lm.source.fingerprint:
        warnings.warn(
            f"The circuit's off-values are means of {circuit.model.get('name')!r} in "
            f"{circuit.model.get('dtype')}; {lm.source.name!r} in {lm.source.dtype} has other "
            "weights or another precision, so its own means may differ.",
            stacklevel=5,
        )
    return means.with_answers()
