"""NaN and infinity are refused where they first show, and never become a circuit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headloc.baselines.method import ranking_of
from headloc.errors import NonFiniteError
from headloc.lm.finite import blame, check_means, check_model
from headloc.lm.frozen import FrozenLM
from headloc.localizer.run import localize
from headloc.localizer.settings import DataSettings, VerdictSettings
from headloc.objectives import InPlace, PromptSet
from headloc.objectives.task_means import estimate_task_means
from headloc.tasks import AddK
from tests.commands.runs import Headloc, quick
from tests.objectives.by_hand import number_lm
from tests.tasks.zoo import word_level
from tests.tiny import tiny_model
from tests.trust.killing import differences
from tests.trust.poison import poison

SIZES = DataSettings(
    train_prompts=16, selection_prompts=16, test_prompts=16, held_out_prompts=16, mean_prompts=16,
    batch_size=16,
)  # fmt: skip
NAN = float("nan")


def fresh_lm(dtype: torch.dtype = torch.float32) -> FrozenLM:
    tokenizer = word_level()
    return FrozenLM(tiny_model("llama", vocab_size=len(tokenizer), dtype=dtype), tokenizer)


def run(lm: FrozenLM, objective: InPlace | None = None, *callbacks: L.Callback) -> Any:
    """Localize on a random model; that it knows no answer is not asked."""
    return localize(
        lm,
        Answered(lm),
        objective=objective or InPlace("zero"),
        data=SIZES,
        verdict=VerdictSettings(random_sets=1, replicates=0),
        trainer={"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        callbacks=list(callbacks),
    )


class Answered(AddK):
    """Prompts that a model of random weights is right about: the answers are its own."""

    def __init__(self, lm: FrozenLM) -> None:
        super().__init__(shots=1, k=[1, 2, 3], held_out_k=[3], x_min=1, x_max=20)
        self.lm = lm

    def draw(self, n: int, rng: Any, **options: Any) -> Any:
        from dataclasses import replace

        from headloc.objectives.prompts import encode_examples

        examples = super().draw(n, rng, **options)
        _, batch = encode_examples(self.lm, examples, self.template)
        with torch.no_grad():
            said = self.lm.logits(batch)[:, 0].nan_to_num(0.0)
        numbers = self.lm.tokenizer.convert_tokens_to_ids([str(i) for i in range(40)])  # type: ignore[union-attr]
        best = said[:, numbers].argmax(-1).tolist()
        return [replace(example, answer=str(i)) for example, i in zip(examples, best, strict=True)]


WEIGHTS = {
    "one head": ("model.layers.1.self_attn.o_proj.weight", lambda w: w[:, :4].fill_(NAN)),
    "one number": ("model.layers.0.mlp.up_proj.weight", lambda w: w[0, 0].fill_(float("inf"))),
    "the embedding": ("model.embed_tokens.weight", lambda w: w.fill_(NAN)),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_broken_weights_are_refused_by_name_when_a_model_is_loaded(case: str) -> None:
    name, spoil = WEIGHTS[case]
    model = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        spoil(model.get_parameter(name))
    with pytest.raises(NonFiniteError, match=f"1: {name}"):
        FrozenLM(model)


def spoil_number(lm: FrozenLM, number: int) -> None:
    """Let one token of the prompts have no embedding; a trial forward does not see it."""
    token = lm.tokenizer.convert_tokens_to_ids(str(number))  # type: ignore[union-attr]
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[token] = NAN  # type: ignore[index]


def test_means_that_are_none_are_refused_with_their_layer() -> None:
    lm = fresh_lm()
    spoil_number(lm, 7)
    with pytest.raises(NonFiniteError, match=r"head outputs of layer 0 over 16 prompts.*embed"):
        run(lm, InPlace("mean"))


def test_prompts_without_scores_are_counted() -> None:
    lm = fresh_lm()
    spoil_number(lm, 7)
    with pytest.raises(NonFiniteError, match=r"as it is .* to (\d+) of 16 prompts") as caught:
        run(lm)
    assert "embed_tokens" in str(caught.value)
    assert "16 of 16" not in str(caught.value)


class Spoiled(InPlace):
    """A loss that goes wrong at its second step."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__("zero")
        self.how, self.steps = how, 0

    def loss(self, lm: FrozenLM, prompts: PromptSet, rows: Any, gates_BA: Tensor) -> Tensor:
        self.steps += 1
        loss = super().loss(lm, prompts, rows, gates_BA)
        return self.how(loss, gates_BA) if self.steps == 2 else loss


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "NaN": (lambda loss, gates: loss * NAN, "task loss"),
    "infinity": (lambda loss, gates: loss + float("inf"), "task loss"),
    # Its value is 0, its derivative is not there.
    "gradient": (lambda loss, gates: loss + (gates.sum() * 0).sqrt(), "gradient of the gates"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_step_that_goes_wrong_is_not_made(case: str) -> None:
    how, what = LOSSES[case]
    kept: list[Tensor] = []

    class Watch(L.Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            kept.append(pl_module.values())

    with pytest.raises(NonFiniteError, match=rf"The {what} is NaN or infinity at step 2 .*epoch 2"):
        run(fresh_lm(), Spoiled(how), Watch())
    assert bool(kept[0].isfinite().all())


def test_a_model_that_goes_wrong_after_training_is_not_judged() -> None:
    class Late(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            with torch.no_grad():
                lm.model.get_output_embeddings().weight[3] = NAN  # type: ignore[index]

    lm = fresh_lm()
    with pytest.raises(NonFiniteError, match=r"With heads closed|as it is"):
        run(lm, None, Late())


def test_masked_logits_are_no_error() -> None:
    lm = fresh_lm()
    plain = run(lm)

    def mask(module: Any, given: Any, out: Any) -> Any:
        out.logits[..., 0] = float("-inf")
        return out

    handle = lm.model.register_forward_hook(mask)
    try:
        masked = run(lm)
    finally:
        handle.remove()
    assert masked.circuit.heads == plain.circuit.heads
    assert all(value == value and abs(value) < 1e9 for value in masked.metrics.values())


def test_half_precision_that_overflows_is_told_what_to_use() -> None:
    model = tiny_model("llama", dtype=torch.float16)
    logits = torch.full((1, 1, 4), float("inf"), dtype=torch.float16)
    with pytest.raises(NonFiniteError, match=r"float16 ends at 65504.*model\.dtype=bfloat16"):
        check_model(model, logits)
    assert "model.dtype=float32" in blame(tiny_model("llama"))


def test_the_first_layer_without_means_is_named_and_blocks_are_told_apart() -> None:
    lm = number_lm("llama")
    heads = [torch.zeros(3, 4, 8) for _ in lm.layout.layers]
    blocks = [torch.zeros(3, 32) for _ in lm.mlps]
    blocks[1][0, 0] = NAN
    with pytest.raises(NonFiniteError, match=r"feed-forward block of layer 1 over 5"):
        check_means([*heads, *blocks], lm, 5)
    check_means([*heads, *blocks[:1]], lm, 5)


def test_a_cached_mean_that_is_none_is_estimated_again(tmp_path: Path) -> None:
    lm = number_lm("llama")
    task = AddK(shots=1, k=[1, 2], held_out_k=[2], x_min=1, x_max=20)
    options: dict[str, Any] = {"prompts": 4, "seed": 0, "cache": tmp_path}
    means = estimate_task_means(lm, task, ["add_1"], **options)
    (path,) = tmp_path.iterdir()
    tensors = load_file(path)
    tensors["000"][0, 0] = NAN
    save_file(tensors, path)
    again = estimate_task_means(lm, task, ["add_1"], **options)
    assert all(torch.equal(a, b) for a, b in zip(means.z, again.z, strict=True))


def test_scores_that_are_none_rank_nothing() -> None:
    with pytest.raises(NonFiniteError, match="1 of 3 heads"):
        ranking_of(torch.tensor([1.0, NAN, 0.0]))


def test_the_last_good_gates_are_kept_and_gone_on_from(
    headloc: Headloc, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    result = headloc(*quick(folder, poison("gates")))
    messages = [line for line in result.err.splitlines() if line.startswith("headloc: ")]
    assert (result.status, len(messages)) == (2, 1)
    assert "at step 2 of training (epoch 2). The gates are NaN themselves" in messages[0]
    assert (folder / "checkpoints" / "stages" / "means.safetensors").is_file()
    assert not (folder / "circuit").exists()
    state = torch.load(folder / "checkpoints" / "gates.ckpt", weights_only=True)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in state.values())
    # Without the callback, from the gates of the first epoch.
    assert headloc(*quick(folder, "resume=true")).status == 0
    assert differences(folder, finished) == []
    shutil.rmtree(folder)
