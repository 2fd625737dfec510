"""Run a plain model under a circuit: every head outside it at its off-value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from headloc.errors import CircuitError
from headloc.lm.frozen import FrozenLM
from headloc.lm.taps import gate_heads
from headloc.objectives import RoleMeans

if TYPE_CHECKING:
    from headloc.circuit.circuit import Circuit


@contextmanager
def closed_outside(circuit: Circuit, lm: FrozenLM) -> Iterator[None]:
    """Gate the model so that only the circuit's heads work (see `Circuit.apply`)."""
    mask_A = circuit.mask(lm).to(lm.device)
    positions = circuit.objective.get("positions", "last")
    if positions != "last" and circuit.objective.get("off_value") != "zero":
        raise CircuitError(
            "This circuit closes heads at every position with off-values that depend on the role "
            "of a token in a task's prompt; free text has no such roles. Score it with "
            "`headloc evaluate`."
        )
    columns = slice(-1, None) if positions == "last" else None
    with gate_heads(lm, mask_A, off=_off_values(circuit, lm), columns=columns):
        yield


def _off_values(circuit: Circuit, lm: FrozenLM) -> list[Tensor] | None:
    kind = circuit.objective.get("off_value")
    if kind == "zero":
        return None
    if kind == "mean":
        means = RoleMeans.from_tensors(circuit.tensors)
        return [mean.to(lm.device) for mean in means.at_last()]
    raise CircuitError(
        f"A circuit with off_value={kind!r} needs counterfactual prompts, which exist in an "
        "evaluation only. Use `headloc evaluate`."
    )
