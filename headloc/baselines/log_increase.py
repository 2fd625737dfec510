"""Log-probability increase of the answer by a head's own contribution
(Yu & Ananiadou 2024, arXiv 2402.02872 and 2312.12141).

    S[h] = log p(b | x_l + o_h) - log p(b | x_l)

with x_l the stream that enters the head's layer at the last prompt token, o_h the head's
contribution there, p the model's final norm and unembedding, and b the first token of the answer.
One pass a prompt reads everything; what a head does to later layers is not seen.

Shape legend: B rows, L layers, H heads of a layer, D model width, S vectors.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import ClassVar

import torch
from torch import Tensor

from headloc.baselines.attribution import checked_prompts
from headloc.baselines.method import HeadRanking, Method, ranking_of
from headloc.baselines.problem import SearchProblem
from headloc.baselines.readout import Readout
from headloc.lm.hooks import compute_dtype
from headloc.lm.partial import reading_stream
from headloc.lm.projection import head_contributions
from headloc.lm.taps import read_heads
from headloc.objectives.prompts import Progress, PromptSet, chunks

ROWS_PER_PASS = 128


class LogProbabilityIncrease(Method):
    """Rank heads by what they add to the log-probability of the answer on their own.

    Args:
        prompts: search prompts that are used; None for all.
    """

    name: ClassVar[str] = "log_probability_increase"
    uses_off_values: ClassVar[bool] = False

    def __init__(self, prompts: int | None = None) -> None:
        self.prompts = checked_prompts(prompts)

    @torch.no_grad()
    def find(self, problem: SearchProblem, progress: Progress | None = None) -> HeadRanking:
        """Read the streams and head outputs of few-shot prompts, and project them."""
        prompts = problem.first(self.prompts)
        prompts = prompts.reference or prompts
        readout = Readout(problem.lm)
        total_A = torch.zeros(problem.total, dtype=torch.float64)
        for part in chunks(len(prompts), ROWS_PER_PASS):
            total_A += self._increase(problem, readout, prompts, part).cpu()
            if progress is not None:
                progress(part.stop, len(prompts))
        return ranking_of(total_A / len(prompts))

    def _increase(
        self, problem: SearchProblem, readout: Readout, prompts: PromptSet, part: slice
    ) -> Tensor:
        """Return the increase of every head, summed over some prompts, [A]."""
        lm, batch = problem.lm, prompts.batch.rows(part)
        prefix = None if prompts.prefix is None else prompts.prefix.rows(part)
        last = 0 if prefix is not None else batch.prompt_columns - 1
        with ExitStack() as stack:
            streams = [
                stack.enter_context(reading_stream(lm, layer.layer)) for layer in lm.layout.layers
            ]
            heads = stack.enter_context(read_heads(lm, columns=slice(last, last + 1)))
            lm.logits(batch, prefix)
        found = []
        for position, seen in enumerate(streams):
            dtype = compute_dtype(lm.dtype)
            x_BD = seen[0][:, last].to(dtype)
            own_BHD = head_contributions(lm, position, heads.z[position][:, 0].to(dtype))
            moved_BSD = torch.cat([x_BD[:, None], x_BD[:, None] + own_BHD.to(x_BD)], dim=1)
            target_BS = batch.target_BJ[:, :1].expand(-1, moved_BSD.shape[1])
            log_p_BS = readout.log_probabilities(moved_BSD.flatten(0, 1), target_BS.flatten())
            log_p_BS = log_p_BS.view(target_BS.shape)
            found.append((log_p_BS[:, 1:] - log_p_BS[:, :1]).sum(0))
        return torch.cat(found)
