"""A localization with made-up outcomes on a tiny random model: a test can know every number."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from headloc.circuit import Circuit
from headloc.evaluation.scoring import Outcomes
from headloc.evaluation.verdict import SplitVerdict
from headloc.heads import HeadId
from headloc.lm.frozen import FrozenLM
from headloc.lm.ledger import StageCost, TokenLedger
from headloc.localizer.history import CURVES, GateHistory
from headloc.localizer.run import Localization
from headloc.objectives.prompts import PromptSet, encode_examples
from headloc.tasks import Example, Template
from headloc.tasks.example import Demonstration
from tests.tasks import zoo
from tests.tiny import tiny_model

HOSTILE = "<script>alert('x')</script>"
PROMPTS = 12
HEADS = (HeadId(0, 1), HeadId(1, 0), HeadId(1, 3))
REQUESTED = 4


@cache
def made_up_lm() -> FrozenLM:
    """A tiny Llama, whose vocabulary is larger than its tokenizer's."""
    tokenizer = zoo.byte_level()
    return FrozenLM(tiny_model("llama", vocab_size=len(tokenizer) + 3), tokenizer)


@cache
def made_up_result() -> Localization:
    """Two splits, three selected heads of eight, two replicates; prompts and names are hostile."""
    verdicts = {"seen": _verdict(0), "held_out": _verdict(1)}
    metrics = {
        **verdicts["seen"].to_metrics(),
        **verdicts["held_out"].to_metrics("held_out/"),
        "heads/count": len(HEADS),
        "heads/total": 8,
        "heads/requested": REQUESTED,
        "stability/jaccard": 0.75,
        "stability/jaccard/smallest": 0.5,
        "stability/replicates": 2,
        "cost/forward_equivalents": 30.0,
        "cost/train": 20.0,
        "cost/verdict": 10.0,
        "time/seconds": 61.0,
        "seed": 7,
    }
    ledger = TokenLedger(2.0, {"train": StageCost(20, 10, 3), "verdict": StageCost(20, 0, 2)})
    replicates = (_circuit(HEADS, 1007), _circuit((HEADS[0], HEADS[1], HeadId(0, 0)), 2007))
    circuit = _circuit(HEADS, 7, metrics)
    return Localization(circuit, verdicts, _history(), ledger, metrics, replicates)


def _circuit(
    heads: tuple[HeadId, ...], seed: int, metrics: dict[str, float] | None = None
) -> Circuit:
    chosen = [4 * head.layer + head.head for head in heads]
    gates_A = torch.linspace(0.05, 0.4, 8)
    gates_A[chosen] = torch.tensor([0.9, 1.0, 0.95])
    return Circuit(
        heads=heads,
        gates=gates_A,
        scores=gates_A * 3 - 1,
        model={
            "name": f"tiny {HOSTILE}",
            "model_type": "llama",
            "dtype": "float32",
            "heads": [4, 4],
            "fingerprint": "0" * 64,
        },
        objective={"name": "in_place", "off_value": "mean", "positions": "last"},
        task={"family": "labels", "options": {"shots": 2}, "train": [HOSTILE], "held_out": []},
        selection={"rule": "kept", "share": 0.97},
        seed=seed,
        metrics=metrics or {},
    )


def _verdict(seed: int) -> SplitVerdict:
    rng = np.random.default_rng(seed)
    shares = {
        "full": (1.0,),
        "circuit": (0.9,),
        "without_circuit": (0.2,),
        "random": (0.1, 0.3),
        "random_layers": (0.4, 0.5),
        "off": (0.0,),
    }
    prompts = _prompts(rng)
    outcomes = {
        name: tuple(_outcomes(rng, share, prompts) for share in sizes)
        for name, sizes in shares.items()
    }
    return SplitVerdict(prompts, outcomes, seed)


def _prompts(rng: np.random.Generator) -> PromptSet:
    examples = []
    for index in range(PROMPTS):
        word = HOSTILE if index == 0 else f"foo\x1b[31m{rng.integers(100)}"
        shown = (Demonstration("a", "1"), Demonstration("b\n&", "2"))
        examples.append(Example(f"task {HOSTILE}", shown, word, str(rng.integers(10, 20))))
    template = Template(in_pre="", in_sep=" ->", out_pre=" ", out_sep="\n")
    encoded, batch = encode_examples(made_up_lm(), examples, template)
    return PromptSet(tuple(examples), encoded, batch)


def _outcomes(rng: np.random.Generator, share: float, prompts: PromptSet) -> Outcomes:
    correct = np.arange(PROMPTS) < round(share * PROMPTS)
    target_NJ = prompts.batch.target_BJ.numpy()
    # The last output row of the model has no token in the tokenizer.
    wrong_NJ = np.full_like(target_NJ, made_up_lm().vocab_size - 1)
    predicted = np.where(correct[:, None], target_NJ, wrong_NJ)
    return Outcomes(correct, -rng.random(PROMPTS) * 3, predicted)


def _history() -> GateHistory:
    history = GateHistory()
    history.values = [torch.full((8,), 0.5)] * 4
    history.scores = [torch.full((8,), 0.5)] * 4
    for number, name in enumerate(CURVES):
        history.curves[name] = [4.0 - number / 2 - epoch / 4 for epoch in range(4)]
    history.curves["val/accuracy"] = [float("nan"), 0.5, 0.75, 1.0]
    return history
