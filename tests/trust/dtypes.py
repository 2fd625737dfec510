"""What half and single precision change, against the same model in float64.

    python -m tests.trust.dtypes          prints the table in Markdown

A model is run in every dtype on the same prompts, under the same gates.  Figures are relative
differences in the 2-norm unless their name says otherwise.

A tolerance follows from the dtype and the depth, not from what was measured.  Rounding errors of
random sign grow with the root of their number (Higham & Mary 2019, A new approach to probabilistic
rounding error analysis): with n roundings of relative size u on the way to a figure, its relative
error stays below lambda * sqrt(n) * u but for a small chance.  Here u is half of
`torch.finfo(dtype).eps`, n counts the operations in a layer whose result is stored, and lambda is
one constant for all models, figures and dtypes.

Shapes: B rows, T columns, J predicting columns, V vocabulary, A heads in flat order.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from headloc import AddK, load_bundled
from headloc.evaluation.scoring import Outcomes, score
from headloc.lm.batch import IGNORE, Role, TokenBatch
from headloc.lm.frozen import FrozenLM
from headloc.lm.gating import gate_heads
from headloc.objectives import InPlace
from headloc.objectives.off_values import role_means
from headloc.objectives.prompts import encode_examples
from headloc.randomness import stream
from headloc.tasks import Example, TaskFamily
from tests.architectures.gates import cut_out
from tests.architectures.saving import OwnNumbers, answering_lm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MODELS = ("bundled", "llama", "gpt2", "gpt_neox", "gemma3")
PROMPTS = 32
SEED = 0

OPERATIONS = 12
"""Operations of a layer whose result is stored in the model's dtype: two norms, query, key, value,
rotation, attention, its projection, two of the feed-forward block, two additions to the stream."""

LAMBDA = 4.0

FIGURES = ("identity", "logits", "ablation", "zeroed weights", "prefix cache", "gradient", "means",
           "log-probability", "mean log-probability")  # fmt: skip


def name_of(dtype: torch.dtype) -> str:
    """The dtype as a configuration names it."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Subject:
    """A model in one dtype, with prompts of its task.

    Attributes:
        lm: the model.
        task: its task, answered by the float32 model.
        examples: prompts of the task.
        batch: the same as tensors.
    """

    lm: FrozenLM
    task: TaskFamily
    examples: tuple[Example, ...]
    batch: TokenBatch

    @cached_property
    def gates_BA(self) -> Tensor:
        """Random gates of every row, the same in every dtype."""
        draw = torch.Generator().manual_seed(3)
        return torch.rand(len(self.batch), self.lm.layout.total, generator=draw).double()

    def real(self, values_BJ: Tensor) -> Tensor:
        """The values at columns that predict something, in float64."""
        return values_BJ[self.batch.target_BJ != IGNORE].double()

    @torch.no_grad()
    def logits(self, **gating: Any) -> Tensor:
        """Logits of the full pass under gates, [S, V]."""
        if not gating:
            return self.real(self.lm.logits(self.batch))
        with gate_heads(self.lm, columns=self.batch.predicting, **gating):
            return self.real(self.lm.logits(self.batch))

    @torch.no_grad()
    def cached(self) -> Tensor:
        """Logits behind the prefix cache, [S, V]."""
        return self.real(self.lm.logits(self.batch, self.lm.prefix(self.batch)))

    def gradient(self) -> Tensor:
        """Gradient of the answers' cross-entropy to the gates, behind the prefix cache, [B, A]."""
        wide = self.lm.dtype == torch.float64
        gates_BA = self.gates_BA.to(torch.float64 if wide else torch.float32).requires_grad_()
        prefix = self.lm.prefix(self.batch)
        with gate_heads(self.lm, gates_BA):
            logits_BJV = self.lm.logits(self.batch, prefix)
        logits_BJV = logits_BJV if wide else logits_BJV.float()
        loss = cross_entropy(
            logits_BJV.flatten(0, 1), self.batch.target_BJ.flatten(), ignore_index=IGNORE
        )
        return torch.autograd.grad(loss, gates_BA)[0].double()

    def means(self) -> Tensor:
        """Mean outputs of all heads at the last prompt token, one vector."""
        found = role_means(self.lm, self.batch, predicting_only=True).means
        return torch.cat([mean_RHd[int(Role.LAST)].flatten() for mean_RHd in found]).double()

    def scores(self) -> Outcomes:
        """Outcomes of a verdict: two thirds of the heads, the others at means of this dtype."""
        objective = InPlace("mean")
        objective.prepare(self.lm, self.task, seed=SEED, prompts=PROMPTS)
        prompts = objective.prompt_set(self.lm, self.task, self.examples, seed=SEED, use="dtypes")
        kept_A = (torch.arange(self.lm.layout.total) % 3 != 0).float()
        return score(objective, self.lm, prompts, kept_A)


def relative(found: Tensor, expected: Tensor) -> float:
    """The relative difference in the 2-norm."""
    return float((found - expected).norm() / expected.norm())


@cache
def subject(model: str, dtype: torch.dtype) -> Subject:
    """A model in a dtype: the weights of the float32 one, rounded or widened."""
    known = load_bundled(device="cpu") if model == "bundled" else answering_lm(model)
    task = AddK() if model == "bundled" else OwnNumbers(known, shots=3, k_max=30)
    examples = task.draw(PROMPTS, stream(SEED, "dtypes"), split="train", items="score")
    _, batch = encode_examples(known, examples, task.template)
    lm = FrozenLM(copy.deepcopy(known.model).to(dtype), known.tokenizer)
    return Subject(lm, task, tuple(examples), batch)


@cache
def measured(model: str, dtype: torch.dtype) -> dict[str, float]:
    """How far a dtype is from float64 in every figure of `FIGURES`."""
    own, wide = subject(model, dtype), subject(model, torch.float64)
    lm, total = own.lm, own.lm.layout.total
    with torch.no_grad(), gate_heads(lm, torch.ones(total)):
        identity = own.real(lm.logits(own.batch))
    plain = own.logits()
    ablation, zeroed = [], []
    for index in range(0, total, max(1, total // 2)):
        gates_A = torch.ones(total)
        gates_A[index] = 0.0
        closed = own.logits(gates=gates_A)
        ablation.append(relative(closed, wide.logits(gates=gates_A.double())))
        # Weights are zeroed at every column, so gates are closed there too.
        with torch.no_grad(), gate_heads(lm, gates_A):
            everywhere = own.real(lm.logits(own.batch))
        with torch.no_grad(), cut_out(lm, lm.layout.head(index)):
            zeroed.append(relative(own.real(lm.logits(own.batch)), everywhere))
    found, expected = own.scores(), wide.scores()
    gap_N = found.log_probability - expected.log_probability
    return {
        "identity": float((identity - plain).abs().max()),
        "logits": relative(plain, wide.logits()),
        "ablation": max(ablation),
        "zeroed weights": max(zeroed),
        "prefix cache": relative(own.cached(), plain),
        "gradient": relative(own.gradient(), wide.gradient()),
        "means": relative(own.means(), wide.means()),
        "log-probability": float(abs(gap_N).max()),
        "mean log-probability": float(abs(gap_N.mean())),
        "answers": float((found.correct != expected.correct).mean()),
    }


def tolerance(model: str, dtype: torch.dtype, figure: str) -> float:
    """What the dtype and the depth of a model allow."""
    if figure == "identity":
        return 0.0
    layers = len(subject(model, dtype).lm.layout.layers)
    roundings = OPERATIONS * layers + 4
    relative_error = LAMBDA * math.sqrt(roundings) * torch.finfo(dtype).eps / 2
    if figure == "gradient":
        # Forward and back, and a product of what both give: each brings its own error.
        return 2 * math.sqrt(2) * relative_error
    if "log-probability" not in figure:
        return relative_error
    # In nats: the error of a logit, and that of the normaliser.
    largest = 2 * relative_error * largest_logit(model)
    return largest / math.sqrt(PROMPTS) if figure.startswith("mean") else largest


def rows(models: Sequence[str] = MODELS) -> list[tuple[str, ...]]:
    """The rows: a figure, and for each dtype the largest over the models and its tolerance."""
    found = []
    for figure in FIGURES:
        cells = []
        for dtype in DTYPES:
            worst = max(models, key=lambda model: _share(model, dtype, figure))
            value, allowed = measured(worst, dtype)[figure], tolerance(worst, dtype, figure)
            cells.append(f"{value:.1e} ({allowed:.1e}, {worst})" if allowed else f"{value:g}")
        found.append((figure, *cells))
    changed = [
        f"{sum(measured(m, dtype)['answers'] for m in models) * PROMPTS:.0f} "
        f"of {PROMPTS * len(models)}"
        for dtype in DTYPES
    ]
    return [*found, ("answers that change", *changed)]


@cache
def largest_logit(model: str) -> float:
    """The largest logit of a model on its prompts, in float64."""
    return float(subject(model, torch.float64).logits().abs().max())


def _share(model: str, dtype: torch.dtype, figure: str) -> float:
    allowed = tolerance(model, dtype, figure)
    return measured(model, dtype)[figure] / allowed if allowed else measured(model, dtype)[figure]


def table() -> str:
    """The table in Markdown."""
    heading = ("largest difference from float64 (allowed, model)", *map(name_of, DTYPES))
    lines = [heading, tuple("---" for _ in heading), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
