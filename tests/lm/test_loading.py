"""A model folder loads as it is, and every way it can be broken has its own sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from headloc.bundled import model_dir
from headloc.errors import HeadlocError, UnsupportedModelError
from headloc.lm import load_lm
from headloc.lm.tokenizers import PROBE, load_tokenizer
from tests.tiny import VOCAB, tiny_batch, tiny_lm, tiny_model

Breaker = Callable[[Path], None]


def save_tokenizer(folder: Path) -> None:
    words = ["[PAD]", "<s>", "</s>", *(str(number) for number in range(VOCAB - 3))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[PAD]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})


def test_a_folder_loads_with_its_tokenizer(saved: Path) -> None:
    lm = load_lm(str(saved), device="cpu")
    batch = tiny_batch()
    assert torch.equal(lm.logits(batch), tiny_lm("llama").logits(batch))
    assert lm.tokenizer is not None
    assert lm.tokenizer("5 7").input_ids == [8, 10]
    assert lm.pad_id == 0
    assert (lm.source.name, lm.source.revision) == (str(saved), None)
    assert lm.source.fingerprint == tiny_lm("llama").source.fingerprint


def test_dtype_is_the_checkpoints_own_unless_asked_for(tmp_path: Path) -> None:
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    auto, wide = load_lm(str(tmp_path)), load_lm(str(tmp_path), dtype="float32")
    assert (auto.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    assert auto.source.fingerprint == wide.source.fingerprint
    assert load_lm(str(tmp_path), dtype="float64").dtype == torch.float64


def test_the_attention_implementation_can_be_chosen(saved: Path) -> None:
    lm = load_lm(str(saved), attn_implementation="eager")
    assert lm.model.config._attn_implementation == "eager"
    with pytest.raises(HeadlocError, match="cannot be loaded"):
        load_lm(str(saved), attn_implementation="quick")


def test_loading_is_silent_and_leaves_the_logging_of_transformers_alone(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    logging.enable_progress_bar()
    try:
        load_lm(str(saved))
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (
            logging.WARNING,
            True,
        )
        logging.disable_progress_bar()
        load_lm(str(saved))
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(usual)
    assert capsys.readouterr() == ("", "")


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a tensor")


def drop_weight(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))


def extra_weight(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"model.layers.2.x": torch.ones(2)}))


def reshape_weight(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(31)}))


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


BROKEN: dict[str, tuple[Breaker, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "not a list"),
    "no model_type": (lambda f: edit_config(f, model_type=None), "names no model_type"),
    "unknown type": (lambda f: edit_config(f, model_type="lama"), "Did you mean 'llama'"),
    "not causal": (lambda f: edit_config(f, model_type="vit"), "not a causal language model"),
    "encoder-decoder": (lambda f: edit_config(f, is_encoder_decoder=True), "encoder-decoder"),
    "own code": (
        lambda f: edit_config(f, model_type="own", auto_map={"AutoConfig": "own.Own"}),
        "trust_remote_code=true",
    ),
    "config cannot be built": (
        lambda f: edit_config(f, num_hidden_layers="two"),
        "cannot be loaded",
    ),
    "truncated": (truncate, "weight files are complete"),
    "garbage": (garbage, "weight files are complete"),
    "missing weight": (drop_weight, "1 weights of .* are missing .*up_proj"),
    "extra weight": (extra_weight, r"belong to no part of the model: model\.layers\.2\.x"),
    "reshaped weight": (reshape_weight, "cannot be loaded|have another shape"),
    "pickle": (pickle_only, r"only pytorch_model\.bin; headloc reads safetensors alone"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "missing shard": (missing_shard, "lacks weight files .*00001-of-00002"),
    "no tokenizer": (no_tokenizer, "holds no tokenizer"),
    "broken tokenizer": (broken_tokenizer, "tokenizer of .* cannot be loaded"),
    "adapter": (adapter, "PEFT adapter"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_folder_is_refused_with_its_reason(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    breaker, message = BROKEN[name]
    breaker(folder)
    with pytest.raises(HeadlocError, match=message) as caught:
        load_lm(str(folder))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_paths_that_are_no_folder_are_refused(saved: Path, tmp_path: Path) -> None:
    for path in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere/at/all", "models/", ""):
        with pytest.raises(HeadlocError, match="There is no folder"):
            load_lm(path)
    with pytest.raises(HeadlocError, match="is a file"):
        load_lm(str(saved / "config.json"))
    with pytest.raises(HeadlocError, match="Revisions exist"):
        load_lm(str(saved), revision="main")


def test_a_hub_model_that_cannot_be_fetched_says_so() -> None:
    with pytest.raises(HeadlocError, match="local_only is set"):
        load_lm("headloc-tests/absent", local_only=True)
    with pytest.raises(HeadlocError, match="hub cannot be reached"):
        load_lm("headloc-tests/absent")
    with pytest.raises(HeadlocError, match="neither a folder nor a hub id"):
        load_lm("not a hub id!")


def test_a_hub_model_is_named_with_the_commit_it_resolved_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = folder.rename(folder.with_name("0123abc"))
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = load_lm("some/model", revision="main").source
    assert (source.name, source.revision) == ("some/model", "0123abc")
    assert (asked["name"], asked["revision"]) == ("some/model", "main")
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in asked["allow_patterns"])


def test_what_the_hub_refuses_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    refusals = {
        errors.GatedRepoError: "is gated",
        errors.RepositoryNotFoundError: "no hub model",
        errors.RevisionNotFoundError: "no revision 'v9'",
        ConnectionError: "cannot be reached",
    }
    for kind, message in refusals.items():
        # The hub's errors want a response; only their type matters here.
        error = kind.__new__(kind)

        def download(name: str, _error: Exception = error, **options: Any) -> str:
            raise _error

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        with pytest.raises(HeadlocError, match=message):
            load_lm("some/model", revision="v9")


def test_unknown_dtypes_and_devices_are_refused(saved: Path) -> None:
    with pytest.raises(HeadlocError, match="Did you mean 'bfloat16'"):
        load_lm(str(saved), dtype="bfloat")
    with pytest.raises(HeadlocError, match="Did you mean 'cuda'"):
        load_lm(str(saved), device="cudda")
    with pytest.raises(HeadlocError, match="not supported"):
        load_lm(str(saved), device="meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_accelerator_is_named(saved: Path) -> None:
    with pytest.raises(HeadlocError, match="0 CUDA devices"):
        load_lm(str(saved), device="cuda")
    assert load_lm(str(saved), device="auto").device.type == "cpu"


def test_an_unsupported_architecture_is_refused_after_loading(tmp_path: Path) -> None:
    tiny_model("mamba").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no heads to localize"):
        load_lm(str(tmp_path))


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma"])
def test_a_model_s_own_tokenizer_is_what_is_loaded(family: str, tmp_path: Path) -> None:
    own = model_dir() / "tokenizer.json"
    tiny_model(family).save_pretrained(tmp_path)
    shutil.copy(own, tmp_path)
    config = tmp_path / "tokenizer_config.json"
    plain = Tokenizer.from_file(str(own)).encode(PROBE, add_special_tokens=False).ids
    config.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert load_tokenizer(str(tmp_path))(PROBE, add_special_tokens=False).input_ids == plain
    # transformers decides by the type of the model where the folder does not say.
    config.write_text("{}")
    with pytest.warns(UserWarning, match="cuts text otherwise.*PreTrainedTokenizerFast"):
        assert load_tokenizer(str(tmp_path))(PROBE, add_special_tokens=False).input_ids != plain
