"""Does a head copy?  The eigenvalues of its OV circuit W_U W_O W_V W_E (Elhage et al. 2021).

Of the V x V map from tokens to logits only d eigenvalues are not zero: those of the d x d matrix
W_V W_E W_U W_O.  Positive real eigenvalues mean that tokens raise their own logit,

    copying score = sum Re(lambda) / sum |lambda|

is 1 for a head that copies and -1 for one that suppresses what it reads.

Shapes: d head width, D model width, V vocabulary, B rows.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .frozen_norm import freeze_norm
from .neurons import affine

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


def token_map(embedding_VD: Tensor, unembedding_VD: Tensor, rows: int = 4096) -> Tensor:
    """Return W_E W_U = sum over tokens of e_t u_t^T, map_DD in float64, some tokens at a time."""
    width = embedding_VD.shape[1]
    total_DD = torch.zeros(width, width, dtype=torch.float64, device=embedding_VD.device)
    for start in range(0, len(embedding_VD), rows):
        part = slice(start, start + rows)
        total_DD += embedding_VD[part].double().T @ unembedding_VD[part].double()
    return total_DD


def copying_score(value_dD: Tensor, output_dD: Tensor, map_DD: Tensor) -> tuple[float, Tensor]:
    """Return the copying score and the d complex eigenvalues.

    Args:
        value_dD: W_V of the head, what its input norm multiplies with folded in.
        output_dD: W_O of the head, what the final norm multiplies with folded in.
        map_DD: what `token_map` gave.
    """
    small_dd = value_dD.double() @ map_DD @ output_dD.double().T
    values_d = torch.linalg.eigvals(small_dd)
    size = values_d.abs().sum().clamp(min=1e-300)
    return float(values_d.real.sum() / size), values_d


@torch.no_grad()
def input_gains(lm: FrozenLM, positions: list[int]) -> dict[int, Tensor]:
    """Return what the norm before each attention multiplies with, up to a factor, gain_D.

    Ones where no norm stands before it.
    """
    seen: dict[int, list[tuple[nn.Module, Tensor, Tensor]]] = {p: [] for p in positions}
    entered: dict[int, Tensor] = {}
    handles = []
    for position in positions:
        site = lm.sites[position]
        for _, module in lm.model.get_submodule(site.block).named_children():
            if "norm" in type(module).__name__.lower():
                handles.append(module.register_forward_hook(partial(_keep, seen[position])))
        attention = lm.model.get_submodule(site.attention)
        hook = partial(_enter, entered, position)
        handles.append(attention.register_forward_pre_hook(hook, with_kwargs=True))
    ids_BT = (torch.arange(10, device=lm.device).reshape(2, 5) * 7 + 3) % lm.vocab_size
    try:
        lm.model(input_ids=ids_BT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for position, n_BTD in entered.items():
        found[position] = torch.ones(lm.width, dtype=torch.float64, device=n_BTD.device)
        for module, x_BTD, y_BTD in seen[position]:
            if torch.equal(y_BTD, n_BTD):
                norm = freeze_norm(module, x_BTD.flatten(0, 1), y_BTD.flatten(0, 1), lm.dtype)
                found[position] = norm.slope_BD.mean(0)
    return found


def embeddings(lm: FrozenLM) -> tuple[Tensor, Tensor]:
    """Return the embedding and unembedding matrices, [V, D] each."""
    unembedding_VD, _ = affine(lm.model.get_output_embeddings())
    embedding = lm.model.get_input_embeddings().weight
    return embedding[: len(unembedding_VD)], unembedding_VD[: len(embedding)]


def _keep(
    seen: list[tuple[nn.Module, Tensor, Tensor]], module: nn.Module, args: Any, output: Tensor
) -> None:
    seen.append((module, args[0], output))


def _enter(
    entered: dict[int, Tensor], position: int, module: nn.Module, args: Any, kwargs: Any
) -> None:
    entered[position] = args[0] if args else kwargs["hidden_states"]
