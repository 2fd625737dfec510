"""From a model folder to a circuit folder and back: nothing is lost on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from headloc import localize
from headloc.circuit import Circuit
from headloc.commands.evaluate import own_objective
from headloc.errors import CircuitError
from headloc.evaluation.scoring import score
from headloc.files import jsonable
from headloc.gates import PenaltySparsity
from headloc.lm import load_lm
from headloc.lm.batch import collate
from headloc.lm.frozen import FrozenLM
from headloc.localizer.selection import TopN
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives import InPlace
from headloc.tasks import Example, encode_all, render
from tests.localizer.planted import OwnAnswers
from tests.tasks.zoo import qwen, word_level
from tests.tiny import SPECS, tiny_batch, tiny_lm, tiny_model

SEED = 2
QUICK: dict[str, Any] = {
    "data": DataSettings(8, 8, 8, 8, 8, batch_size=8),
    "verdict": VerdictSettings(random_sets=0),
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    "sparsity": PenaltySparsity(0.1),
    "selection": TopN(3),
}


@cache
def answering_lm(family: str) -> FrozenLM:
    """A tiny model that answers numbers: the rows of all other tokens are zero."""
    # transformers cuts text of this family as Qwen does, whatever its tokenizer.json says.
    tokenizer = qwen() if SPECS[family].model_type == "qwen2" else word_level()
    model = tiny_model(family, vocab_size=len(tokenizer))
    ids = _number_ids(tokenizer)[1]
    others = torch.ones(len(tokenizer), dtype=torch.bool)
    others[ids] = False
    with torch.no_grad():
        model.get_output_embeddings().weight[others] = 0.0
    return FrozenLM(model, tokenizer)


def _number_ids(tokenizer: Any) -> tuple[list[str], list[int]]:
    """Numbers that are one token, and their ids."""
    ids = [tokenizer(str(n), add_special_tokens=False).input_ids for n in range(100)]
    found = {str(n): one[0] for n, one in enumerate(ids) if len(one) == 1}
    return list(found), list(found.values())


class OwnNumbers(OwnAnswers):
    """Demonstrations of add-k, and as the answer the number that a model finds most likely."""

    @torch.no_grad()
    def _answered(self, examples: Sequence[Example]) -> list[Example]:
        numbers, ids = _number_ids(self.lm.tokenizer)
        rendered = [render(example, self.template) for example in examples]
        encoded = encode_all(self.lm.tokenizer, rendered)
        batch = collate([item.prompt for item in encoded], self.lm.pad_id)
        best = self.lm.logits(batch)[:, 0, ids].argmax(-1).tolist()
        return [
            replace(example, answer=numbers[index])
            for example, index in zip(examples, best, strict=True)
        ]


def other_lm(family: str) -> FrozenLM:
    """A tiny model of another type."""
    return tiny_lm("gpt2" if SPECS[family].model_type != "gpt2" else "llama")


def saving(family: str) -> None:
    """A saved model finds a circuit that, saved and loaded, acts bit for bit as it did."""
    known = answering_lm(family)
    text = "75->84#77->86#65->"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        known.model.save_pretrained(folder)
        assert known.tokenizer is not None
        known.tokenizer.save_pretrained(folder)
        lm = load_lm(str(folder), device="cpu")
        assert lm.tokenizer is not None
        assert lm.tokenizer(text).input_ids == known.tokenizer(text).input_ids
        assert lm.source.fingerprint == known.source.fingerprint
        assert torch.equal(lm.logits(tiny_batch()), known.logits(tiny_batch()))
        task = OwnNumbers(lm)
        found = localize(lm, task, objective=InPlace("mean"), seed=SEED, **QUICK)
        found.circuit.save(Path(place) / "circuit")
        again = Circuit.load(Path(place) / "circuit")
    _same_circuit(again, found.circuit)
    assert len(again.heads) == 3
    # The loaded circuit answers every prompt of the verdict as the run did.
    verdict = found.verdicts["seen"]
    objective = own_objective(again, lm, task, seed=SEED, prompts=8)
    scored = score(objective, lm, verdict.prompts, again.mask(lm))
    expected = verdict.outcomes["circuit"][0]
    assert scored.log_probability.tolist() == expected.log_probability.tolist()
    assert scored.predicted.tolist() == expected.predicted.tolist()
    ids = tiny_batch((7, 7)).ids_BT
    logits = []
    for circuit, model in ((found.circuit, lm), (again, lm), (again, known)):
        with circuit.apply(model.model), torch.no_grad():
            logits.append(model.model(ids).logits)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    with torch.no_grad():
        assert not torch.equal(logits[0], lm.model(ids).logits)
    stranger = other_lm(family)
    with pytest.raises(CircuitError, match="of type"):
        again.check_model(stranger)
    with pytest.raises(CircuitError, match="of type"), again.apply(stranger.model):
        pass


def _same_circuit(one: Circuit, other: Circuit) -> None:
    assert (one.heads, one.mlps, one.seed) == (other.heads, other.mlps, other.seed)
    for name in ("model", "objective", "task", "selection", "metrics"):
        assert jsonable(getattr(one, name)) == jsonable(getattr(other, name)), name
    assert torch.equal(one.gates, other.gates)
    assert torch.equal(one.scores, other.scores)
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
