"""The frozen model: what it promises, and who it says it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import headloc.lm
from headloc.errors import HeadlocError
from headloc.lm import FrozenLM, ModelSource, gate_heads
from tests.tiny import tiny_batch, tiny_lm, tiny_model

REPOSITORY = Path(__file__).parents[2]


def test_it_is_frozen_and_stays_in_eval_mode() -> None:
    lm = FrozenLM(tiny_model("gpt2").train())
    for module in (lm.train(), lm.train(False), lm.requires_grad_(False)):
        assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in lm.parameters())
    parent = torch.nn.ModuleList([lm]).train()
    assert parent.training
    assert not lm.model.training


def test_it_knows_its_sizes() -> None:
    lm = tiny_lm("llama_wide")
    assert (lm.width, lm.vocab_size, lm.dtype) == (32, 61, torch.float32)
    assert lm.device == torch.device("cpu")
    assert lm.layout.layers[0].width == 12


def test_logits_are_those_of_the_predicting_columns() -> None:
    lm, batch = tiny_lm("llama"), tiny_batch((5, 5))
    with torch.no_grad():
        whole = lm.model(
            input_ids=batch.ids_BT,
            attention_mask=batch.mask_BT,
            position_ids=batch.position_ids_BT,
        ).logits
    torch.testing.assert_close(lm.logits(batch), whole[:, 4:])
    assert lm.logits(batch).shape == (2, 2, 61)


def test_logits_build_a_graph_only_for_gates() -> None:
    lm, batch = tiny_lm("llama"), tiny_batch()
    assert not lm.logits(batch).requires_grad
    gates = torch.ones(lm.layout.total, requires_grad=True)
    with gate_heads(lm, gates):
        assert lm.logits(batch).requires_grad
    with torch.no_grad(), gate_heads(lm, gates):
        assert not lm.logits(batch).requires_grad


@pytest.mark.parametrize(
    ("tokenizer", "config", "expected"),
    [
        (SimpleNamespace(pad_token_id=5, eos_token_id=6), {}, 5),
        (SimpleNamespace(pad_token_id=None, eos_token_id=6), {}, 6),
        (SimpleNamespace(pad_token_id=99, eos_token_id=None), {}, 0),
        (None, {"pad_token_id": None, "eos_token_id": 2}, 2),
        (None, {"pad_token_id": None, "eos_token_id": [3, 4]}, 0),
    ],
)
def test_padding_falls_back_to_end_of_text(
    tokenizer: object, config: dict[str, object], expected: int
) -> None:
    lm = FrozenLM(tiny_model("llama"), tokenizer)  # type: ignore[arg-type]
    for name, value in config.items():
        setattr(lm.model.config, name, value)
    assert lm.pad_id == expected


def test_the_padding_token_does_not_matter() -> None:
    lm, batch = tiny_lm("gpt2"), tiny_batch()
    other = batch.rows(slice(None))
    other.ids_BT[other.mask_BT == 0] = 7
    assert torch.equal(lm.logits(batch)[0], lm.logits(other)[0])


def test_a_source_survives_json() -> None:
    source = tiny_lm("llama").source
    assert (source.model_type, source.dtype, source.heads) == ("llama", "float32", (4, 4))
    again = ModelSource.from_dict(json.loads(json.dumps({**source.to_dict(), "new": 1})))
    assert again == source
    with pytest.raises(HeadlocError, match="lacks fingerprint"):
        ModelSource.from_dict({k: v for k, v in source.to_dict().items() if k != "fingerprint"})


def test_the_fingerprint_follows_the_weights_and_not_the_dtype(tmp_path: Path) -> None:
    source = tiny_lm("llama").source
    assert FrozenLM(tiny_model("llama")).source.fingerprint == source.fingerprint
    assert FrozenLM(tiny_model("llama", seed=1)).source.fingerprint != source.fingerprint
    changed = tiny_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 9.0})
    assert FrozenLM(changed).source.fingerprint != source.fingerprint
    half = FrozenLM(tiny_model("llama", dtype=torch.bfloat16)).source
    widened = FrozenLM(tiny_model("llama", dtype=torch.bfloat16).float()).source
    assert widened.fingerprint == half.fingerprint != source.fingerprint


def test_a_fingerprint_is_the_same_in_another_process_and_after_a_reload(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model("llama")
    expected = FrozenLM(model).source.fingerprint
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert FrozenLM(reloaded).source.fingerprint == expected
    script = "from tests.tiny import tiny_lm; print(tiny_lm('llama').source.fingerprint)"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == expected


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, headloc.lm; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    for name in headloc.lm.__all__:
        assert getattr(headloc.lm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        headloc.lm.nothing  # noqa: B018


def test_a_trainer_that_moves_its_module_leaves_the_model_where_it_is() -> None:
    lm = tiny_lm("llama")
    outer = torch.nn.Module()
    outer.lm, outer.gate = lm, torch.nn.Linear(2, 2)
    outer.to("meta")
    assert outer.gate.weight.device.type == "meta"
    assert lm.device.type == "cpu"
    outer.double()
    assert lm.dtype == torch.float32
