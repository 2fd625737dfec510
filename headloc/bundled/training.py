"""Train the bundled model: deterministic, resumable, on one CPU core.

The run writes into its output folder the model in hub format (``model/``), the training curve
(``curve.json``), the recipe (``recipe.json``) and a checkpoint (``checkpoint/``). A run that was
killed continues from its last checkpoint and gives the weights of an uninterrupted one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from headloc.bundled import checkpoint
from headloc.bundled.checkpoint import Progress
from headloc.bundled.mixture import Mixture, step_generator
from headloc.bundled.objective import step_losses
from headloc.bundled.optimizers import Optimizers
from headloc.bundled.recipe import Architecture, Recipe
from headloc.bundled.tokenizer import build_tokenizer
from headloc.files import write_json

#: Told after every reported step: steps done, steps in all, and the averages since the last call.
Reporter = Callable[[int, int, dict[str, float]], None]
#: The task-vector perturbations have their own stream, apart from the data's.
_PERTURBATION_SEED = 101


def train(
    recipe: Recipe, output_dir: Path, *, resume: bool = True, progress: Reporter | None = None
) -> Path:
    """Train by ``recipe`` and return the folder of the finished model.

    Raises:
        HeadlocError: when the checkpoint found belongs to another recipe or is damaged.
    """
    folder = output_dir / "checkpoint"
    if not resume and folder.is_dir():
        shutil.rmtree(folder)
    output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    model = build_model(recipe, tokenizer)
    optimizer = Optimizers(model, recipe.optimisation)
    done = checkpoint.load(folder, model, optimizer, recipe.to_dict())
    write_json(output_dir / "recipe.json", recipe.to_dict())
    with one_thread():
        done = _run(model, optimizer, recipe, tokenizer, done, folder, progress)
    write_json(output_dir / "curve.json", list(done.curve))
    return save_model(model, tokenizer, output_dir / "model")


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised model; the global random state is left as it was."""
    shape = recipe.architecture
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.ffn_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        max_position_embeddings=shape.max_positions,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=shape.init_std,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(config).float()
    if shape.equal_query_key:
        _equal_query_key(model, shape)
    return model


@torch.no_grad()
def _equal_query_key(model: LlamaForCausalLM, shape: Architecture) -> None:
    group = shape.heads // shape.kv_heads
    for layer in model.model.layers:
        query_HdD = layer.self_attn.q_proj.weight.unflatten(0, (shape.heads, -1))
        query_HdD[::group] = layer.self_attn.k_proj.weight.unflatten(0, (shape.kv_heads, -1))


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, so that sums have one order and runs are repeatable."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write the hub-format folder beside its place, then move it in."""
    partial = folder.with_name(f".{folder.name}.partial")
    old = folder.with_name(f".{folder.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for path in partial.iterdir():
        path.chmod(0o644)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _run(
    model: LlamaForCausalLM,
    optimizer: Optimizers,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    done: Progress | None,
    folder: Path,
    report: Reporter | None,
) -> Progress:
    done = done or Progress(0, 0.0, (), recipe.to_dict())
    mixture = Mixture(recipe, tokenizer.get_vocab())
    choices = recipe.optimisation
    curve, window = list(done.curve), _Window()
    started = time.monotonic() - done.seconds
    model.train()
    model.set_attn_implementation("eager" if choices.bfloat16 else "sdpa")
    for step in range(done.step, choices.steps):
        perturbations = step_generator(recipe.seed + _PERTURBATION_SEED, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=choices.bfloat16):
            loss, record = step_losses(model, mixture.draw(step), recipe, perturbations)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), choices.gradient_clip)
        optimizer.step(step)
        window.add(record | {"loss": float(loss.detach())})
        finished = step + 1
        if finished % recipe.report_every == 0 or finished == choices.steps:
            seconds = time.monotonic() - started
            curve.append({"step": finished, "seconds": round(seconds, 1)} | window.averages())
            window = _Window()
            if report is not None:
                report(finished, choices.steps, curve[-1])
        if finished % recipe.checkpoint_every == 0 or finished == choices.steps:
            seconds = time.monotonic() - started
            done = Progress(finished, seconds, tuple(curve), recipe.to_dict())
            checkpoint.save(folder, model, optimizer, done)
    model.eval()
    return done


class _Window:
    """Averages of what was recorded since the last report."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, record: dict[str, float]) -> None:
        for name, value in record.items():
            self._values.setdefault(name, []).append(value)

    def averages(self) -> dict[str, float]:
        return {name: round(sum(v) / len(v), 4) for name, v in self._values.items()}
