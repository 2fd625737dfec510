"""The doctor finds what is well and what is not, and leaves the model as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headloc import AddK, load_bundled
from headloc.doctor import estimate, heads
from headloc.doctor.check import Check, Diagnosis
from headloc.doctor.estimate import Trial, check_memory
from headloc.doctor.prompts import check_accuracy, check_tokenizer
from headloc.doctor.run import diagnose
from headloc.lm.frozen import FrozenLM
from headloc.localizer.settings import DataSettings, VerdictSettings
from tests.commands.runs import Headloc
from tests.lm.test_loading import save_tokenizer
from tests.tiny import FAMILIES, hook_count, tiny_lm, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_found_well_and_left_as_it_was(family: str) -> None:
    lm = tiny_lm(family)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    found = [
        heads.check_layout(lm), heads.check_identity(lm), heads.check_ablation(lm),
        heads.check_prefix(lm), heads.check_branches(lm),
    ]  # fmt: skip
    assert [check.status for check in found[1:3]] == ["ok", "ok"]
    assert found[2].figures["effect"] > 100 * found[2].figures["difference"]
    assert all(check.status in ("ok", "note") for check in found)
    after = lm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert hook_count(lm.model) == 0


def test_gates_that_change_the_logits_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, gate = tiny_lm("llama"), heads.gate_heads
    monkeypatch.setattr(heads, "gate_heads", lambda lm, gates: gate(lm, 0.99 * gates))
    assert heads.check_identity(lm).status == "failed"


def test_a_model_that_is_never_the_same_twice_is_told_apart() -> None:
    lm = tiny_lm("llama")

    def disturb(module: torch.nn.Module, args: object, out: Tensor) -> Tensor:
        return out + 1e-3 * torch.randn_like(out)

    handle = lm.model.get_output_embeddings().register_forward_hook(disturb)
    found = heads.check_identity(lm)
    handle.remove()
    assert found.status == "note"
    assert "from one pass to the next" in found.found


def test_logits_that_are_not_finite_are_a_failure() -> None:
    lm = FrozenLM(tiny_model("gpt2"))
    lm.model.get_output_embeddings().weight.data[3] = float("nan")
    assert heads.check_identity(lm).status == "failed"


def test_the_wrong_slice_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, weights = tiny_lm("llama"), heads.output_weights
    monkeypatch.setattr(heads, "output_weights", lambda lm, position: weights(lm, position).flip(0))
    # flip() copies, so that nothing is zeroed: the ablations must differ.
    assert heads.check_ablation(lm).status == "failed"


@pytest.mark.parametrize("status", ["ok", "note"])
def test_the_bundled_model_can_add_with_demonstrations(status: str) -> None:
    lm, task = load_bundled(), AddK(shots=5 if status == "ok" else 0)
    found = check_accuracy(lm, task, prompts=32, seed=0)
    assert found.status == status
    assert (found.figures["accuracy"] > 0.9) is (status == "ok")


def test_a_tokenizer_without_the_answers_stops_the_rest(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    from headloc import load_lm

    found = diagnose(load_lm(str(tmp_path)), AddK(), prompts=8)
    status = {check.name: check.status for check in found.checks}
    assert status["tokenizer"] == "failed"
    assert status["task"] == status["memory"] == status["time"] == "skipped"
    assert [check.name for check in found.failed] == ["tokenizer"]


def test_prompts_beyond_the_positions_of_the_model_are_a_failure() -> None:
    lm = load_bundled()
    limit = lm.model.config.max_position_embeddings
    lm.model.config.max_position_embeddings = 20
    found = check_tokenizer(lm, AddK(shots=5), prompts=4, seed=0)
    lm.model.config.max_position_embeddings = limit
    assert found.status == "failed"
    assert "20 positions" in found.advice


def test_caches_that_do_not_fit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load_bundled()
    roomy = check_memory(lm, AddK(), seed=0)
    assert roomy.status == "ok"
    needed = int(roomy.figures["cache_bytes"])
    # 22 cached tokens of 6 layers, 4 key-value heads, width 16, keys and values in float32.
    assert needed == 2048 * 22 * 6 * 4 * 16 * 2 * 4
    monkeypatch.setattr(estimate, "free_bytes", lambda device: needed)
    assert check_memory(lm, AddK(), seed=0).status == "note"


def test_the_estimate_scales_every_stage_by_its_own_size() -> None:
    small = DataSettings(64, 32, 32, 32, 32, 64)
    took = {"mean head outputs": 1.0, "prompts and prefixes": 2.0, "selecting heads": 4.0,
            "verdict on seen tasks": 8.0}  # fmt: skip
    trial = Trial(small, VerdictSettings(random_sets=2), took, 16.0, None)
    assert trial.seconds(small, VerdictSettings(random_sets=2), 3) == 1 + 2 + 4 + 8 + 3 * 16
    double = DataSettings(128, 64, 64, 64, 64, 64)
    assert trial.seconds(double, VerdictSettings(random_sets=2), 3) == 2 * (1 + 2 + 4 + 8 + 3 * 16)
    # A replicate trains and selects anew; 20 sets of either kind are 44 conditions, not 8.
    many = VerdictSettings(random_sets=20, replicates=1)
    assert trial.seconds(small, many, 3) == 1 + 2 + 2 * 4 + 8 * 44 / 8 + 2 * 3 * 16


def test_failed_checks_are_those_that_failed() -> None:
    checks = (Check("a", "ok", ""), Check("b", "failed", ""), Check("c", "note", ""))
    assert Diagnosis({}, {}, checks).failed == checks[1:2]


def test_the_command_tells_and_writes_everything(headloc: Headloc, tmp_path: Path) -> None:
    result = headloc("doctor", "prompts=16", "trial_prompts=16", f"output_dir={tmp_path / 'out'}")
    assert result.status == 0
    written = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert written["model"]["name"] == "headloc/bundled"
    names = [check["name"] for check in written["checks"]]
    assert names == [
        "heads", "gates of one", "ablation", "prefix cache", "branches", "tokenizer", "task",
        "memory", "time",
    ]  # fmt: skip
    assert all(check["status"] == "ok" for check in written["checks"])
    assert written["checks"][-1]["figures"]["seconds"] > 0
    for check in written["checks"]:
        assert check["found"] in result.out


def test_a_model_that_cannot_do_the_task_ends_with_an_error(
    headloc: Headloc,
    other_model: Path,
) -> None:
    result = headloc("doctor", "model=local", f"model.path={other_model}", "prompts=16")
    assert result.status == 2
    assert "checks failed (task)" in result.err
    assert "more task.shots" in result.out


def test_wrong_counts_are_refused(headloc: Headloc) -> None:
    result = headloc("doctor", "prompts=0")
    assert (result.status, "prompts=0 must be" in result.err) == (2, True)
