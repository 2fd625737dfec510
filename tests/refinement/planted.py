"""A small model with a task that it can do, and a function vector for it."""

from __future__ import annotations

from functools import cache

from headloc.heads import HeadId
from headloc.lm.frozen import FrozenLM
from headloc.objectives import FunctionVector, InPlace
from headloc.randomness import stream
from headloc.refinement.contexts import Contexts, make_contexts
from headloc.refinement.injection import Insertion
from headloc.refinement.residual import residual_means
from headloc.refinement.scorer import Scorer
from headloc.refinement.vectors import HeadVectors
from tests.localizer.planted import OwnAnswers, planted_lm

SEED = 4
HEADS = (HeadId(0, 1), HeadId(0, 2), HeadId(1, 1), HeadId(2, 0), HeadId(2, 3))


@cache
def task() -> OwnAnswers:
    """Offsets 1, 5 and 9, the last held out; the right answer is the model's own."""
    return OwnAnswers(planted_lm(), k=[1, 5, 9], held_out_k=[9])


@cache
def objective() -> FunctionVector:
    """A prepared function vector, inserted at layer 1."""
    prepared = FunctionVector(layer=1, prompts_per_task=10)
    prepared.prepare(planted_lm(), task(), seed=SEED)
    return prepared


@cache
def ablation() -> InPlace:
    """The prepared ablation of few-shot prompts."""
    in_place = InPlace(off_value="mean")
    in_place.prepare(planted_lm(), task(), seed=SEED, prompts=20)
    return in_place


@cache
def contexts(prompts: int = 12) -> Contexts:
    """A few queries in all contexts."""
    examples = task().draw(prompts, stream(SEED, "test"), split="train")
    return make_contexts(
        planted_lm(), task(), objective(), ablation(), examples, seed=SEED, use="test-train"
    )


@cache
def scorer() -> Scorer:
    """What the table needs beside its prompts."""
    lm: FrozenLM = planted_lm()
    names = (*task().train, *task().held_out)
    return Scorer(
        lm=lm,
        vectors=HeadVectors.of(objective(), lm),
        insertion=Insertion.of(objective(), lm),
        in_place=ablation(),
        theta_KLD=residual_means(lm, task(), names, prompts=5, seed=SEED),
        residual_layer=1,
        random_sets=3,
        seed=SEED,
    )
