"""Are the heads where headloc thinks, and do taps, prefix cache and branches tell the truth?

Everything is measured on random tokens, so that nothing depends on a tokenizer.

Shape legend: B rows, T columns, V vocabulary, A heads in flat order, H heads of a layer, d head
width, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from headloc.doctor.check import Check
from headloc.errors import UnsupportedModelError
from headloc.heads import HeadId
from headloc.lm.batch import EncodedPrompt, TokenBatch, collate
from headloc.lm.branches import supports_branches
from headloc.lm.families import FAMILIES
from headloc.lm.frozen import FrozenLM
from headloc.lm.gating import gate_heads
from headloc.lm.projection import output_weights

_LENGTHS = (12, 9, 5)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_TOLERANCE_HALF = 5e-2


def probe_batch(lm: FrozenLM, seed: int = 0) -> TokenBatch:
    """Return three left-padded rows of random tokens, [B, T]."""
    draw = torch.Generator().manual_seed(seed)
    rows = [tuple(torch.randint(lm.vocab_size, (n,), generator=draw).tolist()) for n in _LENGTHS]
    prompts = [EncodedPrompt(row, (0,), (0,) * len(row)) for row in rows]
    return collate(prompts, lm.pad_id).to(lm.device)


def check_layout(lm: FrozenLM) -> Check:
    """Say where the heads are and how they were found."""
    layers = lm.layout.layers
    shapes = sorted({(layer.heads, layer.width, layer.kv_heads) for layer in layers})
    heads, width, kv_heads = shapes[0]
    each = (
        f"{heads} heads of width {width} ({kv_heads} key-value heads)"
        if len(shapes) == 1
        else "heads of several shapes: " + ", ".join(f"{h} of width {d}" for h, d, _ in shapes)
    )
    total = int(lm.model.config.get_text_config().num_hidden_layers)
    some = f"{len(layers)} of {total} layers" if len(layers) < total else f"{len(layers)} layers"
    known = lm.source.model_type in FAMILIES
    return Check(
        "heads",
        "ok" if known else "note",
        f"{lm.layout.total} heads in {some}, {each}; {lm.source.model_type}, "
        + ("a known family" if known else "found by its structure"),
        ""
        if known
        else "This family is not in headloc's table; the checks below tell whether it works.",
        {"heads": float(lm.layout.total), "layers": float(len(layers))},
    )


@torch.no_grad()
def check_identity(lm: FrozenLM) -> Check:
    """Whether gates of one leave finite logits as they are, bit for bit."""
    batch = probe_batch(lm)
    plain_BJV = lm.logits(batch)
    if not bool(torch.isfinite(plain_BJV).all()):
        return Check(
            "gates of one", "failed", "the model's own logits are not finite",
            f"Load it with model.dtype=float32 or bfloat16 (it is {lm.source.dtype}), or with "
            "model.attn_implementation=eager.",
        )  # fmt: skip
    with gate_heads(lm, torch.ones(lm.layout.total, device=lm.device)) as count:
        gated_BJV = lm.logits(batch)
    fired = len(count.fired)
    if torch.equal(plain_BJV, gated_BJV):
        return Check(
            "gates of one", "ok", f"logits unchanged bit for bit, {fired} of {fired} taps fired"
        )
    if not torch.equal(plain_BJV, lm.logits(batch)):
        return Check(
            "gates of one", "note",
            "the model's own logits differ from one pass to the next, so nothing can be exact",
            "Set torch to deterministic kernels, or use model.attn_implementation=eager.",
            {"difference": _difference(gated_BJV, plain_BJV)},
        )  # fmt: skip
    return Check(
        "gates of one", "failed",
        f"gates of one change the logits by {_difference(gated_BJV, plain_BJV):.1e} (relative)",
        "Heads of this model cannot be gated faithfully; please report the model type.",
        {"difference": _difference(gated_BJV, plain_BJV)},
    )  # fmt: skip


@torch.no_grad()
def check_ablation(lm: FrozenLM) -> Check:
    """Whether closing a head equals zeroing its columns of the output projection."""
    name = "ablation"
    if lm.spread:
        return Check(name, "skipped", "the model is spread over devices")
    batch = probe_batch(lm)
    plain_BJV = lm.logits(batch)
    worst, moved = 0.0, []
    for head in _ends(lm):
        gates_A = torch.ones(lm.layout.total, device=lm.device)
        gates_A[lm.layout.index(head)] = 0.0
        with gate_heads(lm, gates_A):
            closed_BJV = lm.logits(batch)
        try:
            with _without(lm, head):
                zeroed_BJV = lm.logits(batch)
        except UnsupportedModelError:
            return Check(
                name, "skipped", "the output projections hold no plain weights (quantised)",
                "Localization works; analyses that read weights need model.dtype=bfloat16.",
            )  # fmt: skip
        worst = max(worst, _difference(closed_BJV, zeroed_BJV))
        moved.append(_difference(closed_BJV, plain_BJV))
    figures = {"difference": worst, "effect": min(moved)}
    heads = " and ".join(map(str, _ends(lm)))
    if worst > _TOLERANCE.get(lm.dtype, _TOLERANCE_HALF):
        return Check(
            name, "failed",
            f"closing {heads} differs from zeroed projection weights by {worst:.1e} (relative)",
            "The slice that headloc takes for a head is not one; please report the model type.",
            figures,
        )  # fmt: skip
    if min(moved) == 0:
        return Check(
            name, "note", f"closing {heads} equals zeroed projection weights, but moves no logit",
            "These heads may be dead; a localization tells.", figures,
        )  # fmt: skip
    return Check(
        name, "ok",
        f"closing {heads} equals zeroed projection weights (relative difference {worst:.0e})",
        "", figures,
    )  # fmt: skip


def check_prefix(lm: FrozenLM) -> Check:
    """Whether passes can run from the cached keys and values of the prompt."""
    if lm.supports_prefix_cache:
        return Check("prefix cache", "ok", "gives the logits of the full pass")
    return Check(
        "prefix cache", "note", "does not give the logits of the full pass, so it is not used",
        "Every training step runs whole prompts: use fewer task.shots and data.train_prompts.",
    )  # fmt: skip


def check_branches(lm: FrozenLM) -> Check:
    """Whether many gate sets can share a row."""
    if supports_branches(lm):
        return Check("branches", "ok", "many gate sets run behind one prefix")
    return Check(
        "branches", "note", "every gate set needs a row of its own",
        "Nothing to do: sparsity=path and headloc compare take longer and more memory.",
    )  # fmt: skip


def _ends(lm: FrozenLM) -> tuple[HeadId, HeadId]:
    """The first head of the first layer and the last of the last."""
    first, last = lm.layout.layers[0], lm.layout.layers[-1]
    return HeadId(first.layer, 0), HeadId(last.layer, last.heads - 1)


@contextmanager
def _without(lm: FrozenLM, head: HeadId) -> Iterator[None]:
    """Zero a head's part of its output projection for the block."""
    position = [layer.layer for layer in lm.layout.layers].index(head.layer)
    own_dD = output_weights(lm, position)[head.head]
    kept_dD = own_dD.clone()
    own_dD.zero_()
    try:
        yield
    finally:
        own_dD.copy_(kept_dD)


def _difference(one: Tensor, other: Tensor) -> float:
    """The relative difference of two tensors."""
    return float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-300))
