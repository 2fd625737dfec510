"""A language model with its weights frozen and its heads located.

Shape legend: B rows, T columns, P prompt columns, J answer tokens, V vocabulary, C cached columns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headloc.errors import HeadlocError
from headloc.heads import HeadLayout
from headloc.lm.batch import EncodedPrompt, TokenBatch, collate, last_columns
from headloc.lm.families import Family
from headloc.lm.feed_forward import MlpSite, find_mlps
from headloc.lm.keeping import PrefixKeeper
from headloc.lm.layout import Site, family_of, locate_heads, verify_heads
from headloc.lm.passes import PassSizes, in_passes
from headloc.lm.placement import input_device
from headloc.lm.prefix import PrefixCache, check_cache, join
from headloc.lm.probing import CannotError, attempt, probing
from headloc.lm.source import ModelSource, describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS_PER_CHUNK = 256
_PROBE_LENGTHS = (6, 3)
_PROBE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_PROBE_TOLERANCE_HALF = 5e-2


class FrozenLM(nn.Module):
    """A causal language model, always in eval mode, none of whose parameters requires grad.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer, when there is one.
        sites: where each layer's heads are reached, in the order of `layout.layers`.
        layout: the heads, which fixes their flat order.
        family: where this architecture keeps its parts.
        source: the identity of the model.
        passes: how many rows of a pass have fit into memory.
        keeper: where prefix caches are kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        source: ModelSource | None = None,
    ) -> None:
        """Freeze `model` and locate its heads (a forward on a few tokens).

        Args:
            model: a causal language model; it is put in eval mode and its parameters are frozen.
            tokenizer: its tokenizer.
            source: its identity; described from the model when None.

        Raises:
            UnsupportedModelError: when the heads cannot be located.
        """
        super().__init__()
        model.eval().requires_grad_(False)
        self.model = model
        self.tokenizer = tokenizer
        self.sites: list[Site] = locate_heads(model)
        self.layout: HeadLayout = verify_heads(model, self.sites)
        self.family: Family = family_of(model, self.sites)
        name = str(getattr(model.config, "name_or_path", "") or type(model).__name__)
        self.source = source or describe(model, self.layout, name=name, revision=None)
        accepted = inspect.signature(model.forward).parameters
        self.passes = PassSizes()
        self.keeper = PrefixKeeper()
        self.takes_positions = "position_ids" in accepted
        self.keeps_logits = "logits_to_keep" in accepted

    @cached_property
    def mlps(self) -> list[MlpSite]:
        """The feed-forward blocks, in order of their layers; found on first use by dry forwards.

        Raises:
            UnsupportedModelError: when they cannot be located.
        """
        return find_mlps(self.model, self.family)

    @property
    def device(self) -> torch.device:
        """Where token ids go (the device of the embeddings)."""
        return input_device(self.model)

    @property
    def spread(self) -> bool:
        """Whether the model was placed on several devices by a device map."""
        return len(set((getattr(self.model, "hf_device_map", None) or {}).values())) > 1

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.model.dtype

    @property
    def width(self) -> int:
        """Width D of the residual stream."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        """Number V of token ids the model scores."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def pad_id(self) -> int:
        """A token id to write on padding, which is always masked: pad, else end of text, else 0."""
        for owner in (self.tokenizer, self.model.config.get_text_config()):
            for name in ("pad_token_id", "eos_token_id"):
                value = getattr(owner, name, None)
                if isinstance(value, int) and 0 <= value < self.vocab_size:
                    return value
        return 0

    def train(self, mode: bool = True) -> FrozenLM:
        """Stay in eval mode whatever is asked: dropout has no place in a frozen model."""
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenLM:
        """Stay in place and in dtype: a trainer moves all of a module before and after training.

        What a device map has spread would otherwise end up on one device, and prefix caches on
        another device than the model.
        """
        return self

    def logits(self, batch: TokenBatch, prefix: PrefixCache | None = None) -> Tensor:
        """Logits at the J predicting columns, `[B, J, V]`, in the model's dtype.

        Args:
            batch: the prompts, on any device.
            prefix: what `prefix(batch)` gave for the same rows; then only the predicting columns
                run, and taps see only those. Without it all T columns run.

        Raises:
            HeadlocError: when the prefix belongs to other rows or columns.
        """
        batch = batch.to(self.device)
        answers = batch.target_BJ.shape[1]
        if prefix is None or prefix.columns == 0:
            out = self._forward(batch, slice(None), answers, use_cache=False)
        else:
            _check_prefix(batch, prefix)
            out = self._forward(
                batch, batch.predicting, answers, past_key_values=prefix.fresh(), use_cache=True
            )
        return last_columns(out.logits, answers)

    @torch.no_grad()
    def prefix(
        self,
        batch: TokenBatch,
        *,
        rows_per_chunk: int = _ROWS_PER_CHUNK,
        progress: Callable[[int, int], None] | None = None,
    ) -> PrefixCache:
        """Run columns 0 .. P-2 once and keep their keys and values.

        Args:
            batch: the prompts.
            rows_per_chunk: rows that run together.
            progress: called with (rows done, rows in all) after each chunk.

        Raises:
            UnsupportedModelError: when the model keeps a state that is not keys and values.
            HeadlocError: when `rows_per_chunk` is not positive.
        """
        if rows_per_chunk < 1:
            raise HeadlocError(f"rows_per_chunk is {rows_per_chunk}; give at least 1.")
        columns = batch.prompt_columns - 1
        if columns == 0:
            return PrefixCache.empty(batch.mask_BT[:, :0].to(self.device))

        def run(part: slice) -> PrefixCache:
            return self._prefix_chunk(batch.rows(part).to(self.device), columns)

        return join(
            in_passes(
                self.passes, "prefix", len(batch), run, most=rows_per_chunk, progress=progress
            )
        )

    @torch.no_grad()
    def kept_prefix(
        self, batch: TokenBatch, *, progress: Callable[[int, int], None] | None = None
    ) -> PrefixCache | None:
        """Run the prefix of prompts once, and keep it where `keeper` finds room for it.

        Args:
            batch: the prompts.
            progress: called with (rows done, rows in all).

        Returns:
            The prefix; None where passes must run whole prompts: because the model has no prefix
            cache, prompts have one token, or the caches are not to be kept.
        """
        columns = batch.prompt_columns - 1
        if not columns or not self.supports_prefix_cache:
            return None

        def run(part: slice) -> PrefixCache:
            return self._prefix_chunk(batch.rows(part).to(self.device), columns)

        return self.keeper.keep(batch, run, self.passes, most=_ROWS_PER_CHUNK, progress=progress)

    @property
    def supports_prefix_cache(self) -> bool:
        """Whether passes can run from a prefix cache: it is wanted, and gives the right logits."""
        return self.keeper.place != "none" and self._prefix_is_exact

    @cached_property
    def _prefix_is_exact(self) -> bool:
        """Whether running from a prefix cache gives the logits of the full pass.

        Found out once, by comparing the two on a few left-padded tokens.

        Raises:
            NoRoomError: when not even they fit into the device's memory; nothing is found out then.
        """
        ids = [tuple((7 * i + 3) % self.vocab_size for i in range(n)) for n in _PROBE_LENGTHS]
        prompts = [EncodedPrompt(row, (1, 2), (0,) * len(row)) for row in ids]
        batch = collate(prompts, self.pad_id)
        with torch.no_grad(), probing():
            full = self.logits(batch).double()
            try:
                cached = attempt(lambda: self.logits(batch, self.prefix(batch))).double()
            except CannotError:
                return False
        tolerance = _PROBE_TOLERANCE.get(self.dtype, _PROBE_TOLERANCE_HALF)
        return bool((cached - full).norm() <= tolerance * full.norm())

    def _prefix_chunk(self, batch: TokenBatch, columns: int) -> PrefixCache:
        out = self._forward(batch, slice(0, columns), 1, use_cache=True)
        return PrefixCache(
            check_cache(getattr(out, "past_key_values", None)), batch.mask_BT[:, :columns]
        )

    def _forward(self, batch: TokenBatch, columns: slice, keep: int, **options: Any) -> Any:
        """Run some columns; the mask always spans everything up to the last of them."""
        inputs: dict[str, Any] = {
            "input_ids": batch.ids_BT[:, columns],
            "attention_mask": batch.mask_BT[:, : columns.stop],
        }
        if self.takes_positions:
            inputs["position_ids"] = batch.position_ids_BT[:, columns]
        if self.keeps_logits:
            inputs["logits_to_keep"] = keep
        return self.model(**inputs, **options)


def _check_prefix(batch: TokenBatch, prefix: PrefixCache) -> None:
    """Shapes only: comparing the masks' values would stall an accelerator at every step."""
    given = (len(prefix), prefix.columns)
    expected = (len(batch), batch.prompt_columns - 1)
    if given != expected:
        raise HeadlocError(
            f"The prefix holds {given[0]} rows of {given[1]} columns, but the batch has "
            f"{expected[0]} rows with {expected[1]} columns before the last prompt token. Take the "
            "same rows of both: batch.rows(index) with prefix.rows(index)."
        )
