"""Many variants of the last token in one row: the prompt's prefix is shared and never copied.

G branches are G copies of the predicting columns behind one prefix, with the same position ids and
a four-dimensional mask that lets each copy see the prefix and itself only.  One forward then serves
G gate sets, or one patched head per branch.  Whether a model takes such a mask is found out by a
probe; where it does not, every branch needs a row of its own.

Shape legend: B rows, G branches, J predicting columns, C cached columns, V vocabulary, P prompt
columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.lm.batch import EncodedPrompt, TokenBatch, collate, last_columns
from headloc.lm.probing import CannotError, attempt, probing

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.lm.prefix import PrefixCache

_PROBE_LENGTHS = (7, 4)
_PROBE_BRANCHES = 3
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_TOLERANCE_HALF = 5e-2


def branch_logits(
    lm: FrozenLM, batch: TokenBatch, prefix: PrefixCache | None, branches: int
) -> Tensor:
    """Run G copies of the predicting columns behind one prefix.

    A tap sees them as G * J columns: column g * J + j is predicting column j of branch g.

    Args:
        lm: a model for which `supports_branches` holds.
        batch: the prompts, on the model's device.
        prefix: what `lm.prefix(batch)` gave; None for prompts of one token.
        branches: G.

    Returns:
        logits_BGJV in the model's dtype.

    Raises:
        HeadlocError: when the prefix is missing although prompts have more than one token.
        UnsupportedModelError: when a window of attention is narrower than the prompts (see
            `within_window`).
    """
    columns = batch.prompt_columns - 1
    if columns and (prefix is None or prefix.columns != columns):
        raise HeadlocError(
            f"Branches run behind a prefix of {columns} columns; "
            f"{'none' if prefix is None else prefix.columns} given. Give lm.prefix(batch)."
        )
    span = batch.predicting
    answers = batch.target_BJ.shape[1]
    if not within_window(prefix, answers):
        raise UnsupportedModelError(
            f"Prompts of {columns + answers} columns reach beyond the window of attention of a "
            "layer, which the mask of branches does not know. Give every branch its own row."
        )
    tiled: dict[str, Any] = {
        "input_ids": batch.ids_BT[:, span].repeat(1, branches),
        "attention_mask": _mask(lm, batch, branches),
    }
    if lm.takes_positions:
        tiled["position_ids"] = batch.position_ids_BT[:, span].repeat(1, branches)
    if lm.keeps_logits:
        tiled["logits_to_keep"] = answers * branches
    cache = prefix.fresh() if prefix is not None and columns else None
    out = lm.model(**tiled, past_key_values=cache, use_cache=cache is not None)
    return last_columns(out.logits, answers * branches).unflatten(1, (branches, answers))


def within_window(prefix: PrefixCache | None, answers: int) -> bool:
    """Whether the last of J predicting columns still sees the first column in every layer.

    Where it does not, branches need rows of their own: their mask is one for all layers.

    Args:
        prefix: the prefix of the prompts.
        answers: J.
    """
    window = None if prefix is None else prefix.window
    return prefix is None or window is None or prefix.columns + answers <= window


def supports_branches(lm: FrozenLM) -> bool:
    """Whether branches give the logits of separate rows, by trying it on a few tokens.

    Of prompts that a window of attention cuts off they do not: ask `within_window` as well.
    """
    try:
        require_branches(lm)
    except UnsupportedModelError:
        return False
    return True


def require_branches(lm: FrozenLM) -> None:
    """Make sure that branches give the logits of separate rows, by trying it on a few tokens.

    A branch that saw its neighbours would attend to the last token several times over.

    Raises:
        UnsupportedModelError: when they do not, with what was found.
        NoRoomError: when not even a few tokens fit into the device's memory.
    """
    if not lm.supports_prefix_cache:
        raise _unsupported(lm, "the model runs without a prefix cache, which branches share")
    if getattr(lm.model.config.get_text_config(), "window_size", None) is not None:
        # gpt_neo: a few tokens stay within it, and many branches do not.
        raise _unsupported(lm, "its layers cut a window out of the columns, whatever mask is given")
    ids = [tuple((5 * i + 2) % lm.vocab_size for i in range(n)) for n in _PROBE_LENGTHS]
    prompts = [EncodedPrompt(row, (1, 2), (0,) * len(row)) for row in ids]
    batch = collate(prompts, lm.pad_id).to(lm.device)
    with torch.no_grad(), probing():
        prefix = lm.prefix(batch)
        alone_BJV = lm.logits(batch, prefix).double()
        try:
            branched_BGJV = attempt(lambda: branch_logits(lm, batch, prefix, _PROBE_BRANCHES))
        except CannotError as error:
            name = type(error.__cause__).__name__
            raise _unsupported(
                lm, f"it does not take a mask of its own for each branch ({name})"
            ) from error
    tolerance = _TOLERANCE.get(lm.dtype, _TOLERANCE_HALF)
    gap = (branched_BGJV.double() - alone_BJV[:, None]).norm() / _PROBE_BRANCHES**0.5
    if not bool(gap <= tolerance * alone_BJV.norm()):
        relative = float(gap / alone_BJV.norm())
        raise _unsupported(lm, f"their logits differ from those of rows alone by {relative:.1g}")


def _unsupported(lm: FrozenLM, found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{lm.source.name!r} cannot run gate sets as branches of one row: {found}. Layers with "
        "sliding windows or position biases make their own masks. Give every gate set its own row."
    )


def _mask(lm: FrozenLM, batch: TokenBatch, branches: int) -> Tensor:
    """Return the additive mask [B, 1, G J, C + G J]: prefix, and the own branch up to oneself."""
    answers = batch.target_BJ.shape[1]
    steps = torch.arange(answers, device=lm.device)
    causal_JJ = steps[:, None] >= steps
    own = torch.eye(branches, dtype=torch.bool, device=lm.device)
    block_SS = (own[:, None, :, None] & causal_JJ[None, :, None, :]).flatten(2).flatten(0, 1)
    mask_BT = batch.mask_BT.bool()
    before_BC = mask_BT[:, : batch.prompt_columns - 1]
    real_BS = mask_BT[:, batch.predicting].repeat(1, branches)
    # A padded column sees itself, so that no row of the softmax is empty.
    diagonal_SS = torch.eye(branches * answers, dtype=torch.bool, device=lm.device)
    within_BSS = (block_SS & real_BS[:, None, :]) | diagonal_SS
    before_BSC = before_BC[:, None, :].expand(-1, branches * answers, -1)
    seen_BSK = torch.cat([before_BSC, within_BSS], dim=2)
    lowest = torch.finfo(lm.dtype).min
    mask_BSK = torch.zeros(seen_BSK.shape, dtype=lm.dtype, device=lm.device)
    return mask_BSK.masked_fill(~seen_BSK, lowest)[:, None]
