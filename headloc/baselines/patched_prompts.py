"""Prompts with one head at a time replaced, all heads of a layer in one pass.

The prompts' prefixes are run once, and so is the stream that enters each layer.  A (head, prompt)
pair is one token that starts at the head's own layer: the heads of a layer are branches of the
prompt's row (`headloc.lm.branches`), which share its prefix, or rows of their own where the model
does not take such a mask.

Shapes: N prompts, B prompts of a pass, S (head, prompt) pairs of a pass, H heads of a layer, G of
them that run together, K tasks, T columns of the current forward, d head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.evaluation.many import BRANCHES_PER_PASS, pairs_that_fit
from headloc.lm.batch import EncodedPrompt, collate
from headloc.lm.branches import branch_logits, supports_branches, within_window
from headloc.lm.partial import reading_stream, starting_at, supports_partial
from headloc.lm.passes import in_passes
from headloc.lm.prefix import PrefixCache
from headloc.lm.taps import tap_heads
from headloc.objectives.prompts import chunks, encode_examples

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Example, Template

PAIRS_PER_PASS = 2048
"""(head, prompt) pairs of a pass, unless their logits would be too many."""

_KIND = "patched heads"

Report = Callable[[int], None]


class PatchedPrompts:
    """Prompts whose heads are patched at the last token; the target is the answer's first token.

    Args:
        lm: the frozen model.
        examples: N examples.
        template: how they are rendered.
        branched: whether heads share a row; found out when None.
    """

    def __init__(
        self,
        lm: FrozenLM,
        examples: Sequence[Example],
        template: Template,
        branched: bool | None = None,
    ) -> None:
        self._lm = lm
        encoded, _ = encode_examples(lm, examples, template)
        first = [
            EncodedPrompt(p.prompt_ids, p.answer_ids[:1], p.roles)
            for p in (item.prompt for item in encoded)
        ]
        self._batch = collate(first, lm.pad_id).to(lm.device)
        cached = lm.supports_prefix_cache and self._batch.prompt_columns > 1
        self._prefix: PrefixCache | None = lm.prefix(self._batch) if cached else None
        self._streams = self._read_streams() if cached else {}
        if branched is None:
            branched = supports_branches(lm) and within_window(self._prefix, 1)
        self._branched = branched

    def __len__(self) -> int:
        return len(self._batch)

    @torch.no_grad()
    def probability(self) -> Tensor:
        """Return p(first answer token)_N of the untouched prompts, float64."""
        return torch.cat([self._run(part)[:, 0] for part in chunks(len(self))])

    @torch.no_grad()
    def patched(
        self,
        position: int,
        z_KHd: Tensor,
        task_N: Tensor,
        pairs_per_pass: int = PAIRS_PER_PASS,
        report: Report | None = None,
    ) -> Tensor:
        """Return p(first answer token)_HN with one head of a layer at a time at its task mean.

        Args:
            position: position of the layer in `lm.layout.layers`.
            z_KHd: task means of the layer.
            task_N: row of each prompt's task in them.
            pairs_per_pass: (head, prompt) pairs that run together.
            report: called with the pairs done after each pass.

        Raises:
            HeadlocError: when `pairs_per_pass` is not positive.
        """
        if pairs_per_pass < 1:
            raise HeadlocError(f"A pass of {pairs_per_pass} rows was asked for; give at least 1.")
        pairs = pairs_that_fit(self._lm, 1, pairs_per_pass)
        found = []
        for heads in chunks(z_KHd.shape[1], min(pairs, BRANCHES_PER_PASS)):
            head_G = torch.arange(heads.start, heads.stop, device=self._lm.device)
            before = heads.start * len(self)

            def one_pass(part: slice, head_G: Tensor = head_G, before: int = before) -> Tensor:
                p_BG = self._pass(position, part, head_G, z_KHd[task_N[part]][:, head_G])
                if report is not None:
                    report(before + part.stop * len(head_G))
                return p_BG

            rows = max(1, pairs // len(head_G))
            passes = in_passes(self._lm.passes, _KIND, len(self), one_pass, most=rows)
            found.append(torch.cat(passes).T)
        return torch.cat(found)

    def _pass(self, position: int, part: slice, head_G: Tensor, value_BGd: Tensor) -> Tensor:
        """Return p_BG of some prompts with each of some heads of a layer at its value."""
        layer, heads = self._lm.layout.layers[position].layer, len(head_G)
        if self._branched:
            edit = _replacing(head_G, value_BGd)
            with tap_heads(self._lm, edit, layers=[layer]), self._from(layer, part, heads):
                return self._run(part, heads)
        every_N = torch.arange(len(self), device=self._lm.device)
        row_S = every_N[part].repeat_interleave(heads)
        edit = _replacing(head_G.repeat(len(value_BGd))[:, None], value_BGd.flatten(0, 1)[:, None])
        with tap_heads(self._lm, edit, layers=[layer]), self._from(layer, row_S, 1):
            return self._run(row_S).view(-1, heads)

    def _from(
        self, layer: int, rows: slice | Tensor, branches: int
    ) -> AbstractContextManager[None]:
        if layer not in self._streams:
            return nullcontext()
        return starting_at(self._lm, layer, self._streams[layer][rows].repeat(1, branches, 1))

    def _run(self, rows: Tensor | slice, branches: int = 1) -> Tensor:
        """Return p(first answer token) of some prompts in each branch, float64 [B, G]."""
        batch = self._batch.rows(rows)
        prefix = None if self._prefix is None else self._prefix.rows(rows)
        if branches == 1:
            logits_BGV = self._lm.logits(batch, prefix)
        else:
            logits_BGV = branch_logits(self._lm, batch, prefix, branches)[:, :, 0]
        p_BGV = logits_BGV.float().softmax(-1)
        target_BG = batch.target_BJ.expand(-1, branches)
        return p_BGV.gather(2, target_BG[..., None])[..., 0].double()

    @torch.no_grad()
    def _read_streams(self) -> dict[int, Tensor]:
        """Return what enters each layer at the last token, where a pass can start there."""
        layers = [heads.layer for heads in self._lm.layout.layers if heads.layer > 0]
        layers = [layer for layer in layers if supports_partial(self._lm, layer)]
        with ExitStack() as stack:
            seen = {layer: stack.enter_context(reading_stream(self._lm, layer)) for layer in layers}
            for part in chunks(len(self)):
                self._run(part)
        return {layer: torch.cat(streams) for layer, streams in seen.items()}


def _replacing(head_BG: Tensor, value_BGd: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Return an edit that replaces one head in each of the last G columns.

    Args:
        head_BG: the head, [G] or [B, G].
        value_BGd: its new output.
    """

    def edit(position: int, z_BTHd: Tensor) -> Tensor:
        new_BTHd = z_BTHd.clone()
        columns = value_BGd.shape[1]
        index_BG11 = head_BG.to(z_BTHd.device).expand(value_BGd.shape[:2])[..., None, None]
        index_BG1d = index_BG11.expand(-1, -1, 1, z_BTHd.shape[-1])
        new_BTHd[:, -columns:].scatter_(2, index_BG1d, value_BGd.to(z_BTHd)[:, :, None])
        return new_BTHd

    return edit
