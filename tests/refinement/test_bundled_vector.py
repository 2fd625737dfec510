"""The bundled model: few learned heads carry add-k into zero-shot prompts, better than AIE's."""

from __future__ import annotations

from typing import Literal

import torch

from headloc import AddK, load_bundled, localize
from headloc.baselines.aie import indirect_effects
from headloc.gates import TopKGates
from headloc.localizer.selection import Kept
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives import FunctionVector, InPlace
from headloc.randomness import stream
from headloc.refinement.injection import Insertion
from headloc.refinement.scorer import Scorer
from headloc.refinement.size_curve import distinct, score_sizes
from headloc.refinement.vectors import HeadVectors


def test_the_learned_ranking_beats_aie_and_is_worse_at_no_size() -> None:
    lm, task = load_bundled(), AddK(shots=5)
    objective = FunctionVector(prompts_per_task=40)
    found = localize(
        lm,
        task,
        objective=objective,
        gates=TopKGates(),
        selection=Kept(0.95),
        data=DataSettings(selection_prompts=256, test_prompts=150, held_out_prompts=150),
        verdict=VerdictSettings(random_sets=0),
        trainer={"max_epochs": 16, "accelerator": "cpu", "enable_progress_bar": False},
        seed=5,
    )
    metrics = found.metrics
    for prefix in ("", "held_out/"):
        assert metrics[f"{prefix}accuracy/circuit"] >= 0.7 * metrics[f"{prefix}accuracy/full"]
    assert len(found.circuit.heads) <= 4
    assert objective.means is not None
    aie = indirect_effects(lm, task, objective.means, seed=5, prompts=8)
    scorer = Scorer(
        lm, HeadVectors.of(objective, lm), Insertion.of(objective, lm), InPlace(), torch.empty(0), 0
    )
    splits: dict[Literal["train", "held_out"], int] = {"train": 600, "held_out": 300}
    for split, least in splits.items():
        rng = stream(5, "sizes", split)
        examples = distinct(task.draw(900, rng, split=split, items="score"))
        assert len(examples) > least
        prompts = objective.prompt_set(lm, task, examples, seed=5, use="sizes")
        curve = score_sizes(scorer, prompts, found.circuit.scores, aie.order())
        assert curve is not None
        assert curve.sizes_where("worse") == []
        if split == "train":
            assert 2 in curve.sizes_where("better")
