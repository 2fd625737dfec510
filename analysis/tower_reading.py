"""The two towers of a layer's heads, checked against the model before they are used.

A query tower maps the last prompt token, a key tower maps every earlier token, and the score is
their inner product (Yu & Ananiadou 2024, arXiv 2402.02872).  A wrong layout or rotation must be an
error and never a number: on a trial forward the softmax of the scores is compared with the model's
own attention, which is read through the values and knows nothing of queries and keys.

Shapes: B rows, T columns, C chosen columns (the query's last), H heads, d head width, D model
width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headloc.lm.batch import EncodedPrompt, TokenBatch, collate
from headloc.lm.partial import reading_stream

from .attention_seen import Seen, seeing
from .position_terms import ROTATIONS, Scheme, Scores, content_towers, split_scores
from .query_key_maps import QueryKeyMap, query_key_map, unknown
from .reading import prompt_only, read_heads_of

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

_TRIAL = (9, 6)
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Of attention weights; norms and rotations round to float32 whatever the model's precision."""
_TOLERANCE_HALF = 3e-2


@dataclass(frozen=True, slots=True)
class Towers:
    """The towers of one layer.

    Attributes:
        position: position of the layer in `lm.layout.layers`.
        maps: its query and key projections.
        scheme: how position enters its scores.
    """

    position: int
    maps: QueryKeyMap
    scheme: Scheme

    def scores(self, seen: Seen) -> Scores:
        """Return the scores of all heads, split into content and position."""
        return split_scores(self.maps, self.scheme, seen)

    def content(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Return the towers q_BHd and k_BCHd, without position."""
        return content_towers(self.maps, seen)


@dataclass(frozen=True, slots=True)
class TowerReading:
    """One layer on a chunk of prompts.

    Attributes:
        scores: scores of the last prompt token with the chosen columns.
        query_BHd: query towers, content.
        key_BCHd: key towers, content.
        stream_BCD: the residual stream that enters the layer.
    """

    scores: Scores
    query_BHd: Tensor
    key_BCHd: Tensor
    stream_BCD: Tensor


@torch.no_grad()
def towers_of(lm: FrozenLM, positions: Sequence[int]) -> dict[int, Towers]:
    """Return the towers of some layers.

    Args:
        lm: the frozen model.
        positions: positions in `lm.layout.layers`.

    Raises:
        UnsupportedModelError: when the scores do not give the model's attention.
    """
    maps = {position: query_key_map(lm, position) for position in positions}
    ids = [tuple((7 * i + 3) % lm.vocab_size for i in range(n)) for n in _TRIAL]
    batch = collate([EncodedPrompt(row, (1,), (0,) * len(row)) for row in ids], lm.pad_id)
    batch = prompt_only(batch).to(lm.device)
    with seeing(lm, positions) as seen:
        lm.logits(batch)
    chosen = [head for head in lm.layout if _position(lm, head.layer) in maps]
    read = read_heads_of(lm, batch, chosen)
    return {
        position: Towers(position, found, _scheme(lm, position, found, seen[position],
                                                  read[position].attention_BHT))
        for position, found in maps.items()
    }  # fmt: skip


def _position(lm: FrozenLM, layer: int) -> int:
    return next(p for p, known in enumerate(lm.layout.layers) if known.layer == layer)


def _scheme(
    lm: FrozenLM, position: int, maps: QueryKeyMap, seen: Seen, attention_BHT: Tensor
) -> Scheme:
    """Return the scheme whose attention is the model's."""
    turns = ["none"] if seen.cos_BCr is None else list(ROTATIONS)
    factors = [1.0] if seen.bias_BHC is None else [1.0, maps.scale]
    gaps = {}
    for scheme in (Scheme(turn, factor) for turn in turns for factor in factors):
        total_BHT = split_scores(maps, scheme, seen).total_BHC
        # Columns without any weight are padding or lie outside of a window.
        masked_BHT = total_BHT.masked_fill(attention_BHT == 0, float("-inf"))
        gaps[scheme] = float((masked_BHT.softmax(-1) - attention_BHT.double()).abs().max())
    best = min(gaps, key=lambda scheme: gaps[scheme])
    if not gaps[best] <= _TOLERANCE.get(lm.dtype, _TOLERANCE_HALF):
        raise unknown(
            lm.layout.layers[position],
            f"they do not give the model's attention (it differs by {gaps[best]:.1g}; sinks, or a "
            "rotation inside the attention?)",
        )
    return best


@torch.no_grad()
def read_towers(
    lm: FrozenLM, batch: TokenBatch, towers: dict[int, Towers], columns_BC: Tensor
) -> Iterator[tuple[int, TowerReading]]:
    """Read the towers on a chunk of prompts, layer by layer, in one forward.

    Args:
        lm: the frozen model.
        batch: the prompts; answers are cut off.
        towers: what `towers_of` gave.
        columns_BC: columns that the last prompt token is scored with; its own is appended.
    """
    batch = prompt_only(batch).to(lm.device)
    last_B1 = torch.full_like(columns_BC[:, :1], batch.prompt_columns - 1)
    columns_BC = torch.cat([columns_BC, last_B1], dim=1)
    with seeing(lm, list(towers), columns_BC) as seen, _streams(lm, list(towers)) as streams:
        lm.logits(batch)
    for position, found in towers.items():
        q_BHd, k_BCHd = found.content(seen[position])
        x_BTD = streams[position][-1]
        index = columns_BC[..., None].to(x_BTD.device).expand(-1, -1, x_BTD.shape[-1])
        scores = found.scores(seen[position])
        yield position, TowerReading(
            Scores(scores.content_BHC[..., :-1], scores.position_BHC[..., :-1]),
            q_BHd, k_BCHd[:, :-1], x_BTD.gather(1, index).double(),
        )  # fmt: skip


@contextmanager
def _streams(lm: FrozenLM, positions: Sequence[int]) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the streams that enter some layers."""
    with ExitStack() as stack:
        yield {
            position: stack.enter_context(reading_stream(lm, lm.layout.layers[position].layer))
            for position in positions
        }
