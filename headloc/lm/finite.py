"""Refuse NaN and infinity as soon as they show, and say where they come from.

A circuit made from them would look like any other: comparisons with NaN are false, so accuracies
fall to zero and nothing stops.  Logits of minus infinity are no error: models mask tokens so.

Shapes: any, where none is named; N prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from headloc.errors import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headloc.lm.frozen import FrozenLM

_NAMED = 3
"""Weights that a message names."""


def bad_logits(logits_BJV: Tensor) -> Tensor:
    """Return the rows bad_B with a NaN or an infinity in the place of their most likely token."""
    # The largest logit of a row is NaN where any is.
    return ~logits_BJV.amax(-1).isfinite().all(-1)


def check_model(model: nn.Module, logits_BTV: Tensor) -> None:
    """Refuse a model whose logits on a few tokens are no numbers.

    Raises:
        NonFiniteError: naming the weights that are none, if there are any.
    """
    if bool(bad_logits(logits_BTV).any()):
        raise NonFiniteError(f"The model gives NaN or infinity on a few tokens. {blame(model)}")


def check_log_probabilities(log_p_N: Tensor, lm: FrozenLM, gated: bool) -> None:
    """Refuse log-probabilities of answers that are no numbers.

    Args:
        log_p_N: one per prompt, or [G, N] of several gate vectors.
        lm: the model they come from.
        gated: whether heads were closed.

    Raises:
        NonFiniteError: with the share of the prompts.
    """
    bad_N = ~log_p_N.isfinite()
    check_rows(bad_N if bad_N.ndim == 1 else bad_N.any(0), lm, gated)


def check_rows(bad_N: Tensor, lm: FrozenLM, gated: bool) -> None:
    """Refuse prompts of which some, bad_N, have no scores.

    Raises:
        NonFiniteError: with their share.
    """
    count, total = int(bad_N.sum()), len(bad_N)
    if not count:
        return
    under = "With heads closed" if gated else "With every head as it is"
    raise NonFiniteError(
        f"{under} the model's answer to {count} of {total} prompts ({count / total:.0%}) has NaN "
        f"or infinity for a log-probability, so they cannot be scored. {blame(lm.model)}"
    )


def check_means(means: Sequence[Tensor], lm: FrozenLM, prompts: int) -> None:
    """Refuse mean outputs that are no numbers.

    Args:
        means: per layer of the layout, then per feed-forward block.
        lm: the model they come from.
        prompts: prompts behind them.

    Raises:
        NonFiniteError: naming the first layer.
    """
    for index, mean in enumerate(means):
        if bool(mean.isfinite().all()):
            continue
        layers = lm.layout.layers
        heads = index < len(layers)
        place = layers[index].layer if heads else lm.mlps[index - len(layers)].layer
        what = "head outputs" if heads else "output of the feed-forward block"
        raise NonFiniteError(
            f"The mean {what} of layer {place} over {prompts} prompts hold NaN or infinity (no "
            f"layer before it does). {blame(lm.model)}"
        )


def blame(model: nn.Module) -> str:
    """Say where NaN and infinity may come from, and what helps."""
    broken = [name for name, weight in model.named_parameters() if not _finite(weight)]
    if broken:
        named = ", ".join(broken[:_NAMED]) + (", ..." if len(broken) > _NAMED else "")
        return (
            f"Weights of the model are NaN or infinity ({len(broken)}: {named}): the checkpoint is "
            "broken, or was converted to a dtype that cannot hold it. Download or convert it again."
        )
    if getattr(model, "dtype", None) == torch.float16:
        return (
            "All weights are finite, but float16 ends at 65504 and activations overflow it. Use "
            "model.dtype=bfloat16 or float32."
        )
    return (
        "All weights are finite, so numbers overflow on the way. Use model.dtype=float32, or "
        "another model.attn_implementation."
    )


def _finite(weight: Tensor) -> bool:
    # Quantised weights are integers, and those on disk are not here.
    if weight.is_meta or not weight.is_floating_point():
        return True
    return bool(weight.detach().isfinite().all())
