"""Find a model's feed-forward blocks: the family table or a structural search, proved by a forward.

A site is the module whose output is what the block *adds to the residual stream* (see
`families.py`).  The contract is checked on a few tokens: every site fires exactly once and puts out
`[B, T, D]`, or `[B T, D]` where the layer flattens its tokens first (OPT).  Where the table does
not know the family, it is also measured that silencing a site takes its output, times a constant at
most, out of the stream that leaves the layer.

Shape legend: B rows, T columns, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headloc.errors import UnsupportedModelError
from headloc.lm.families import FAMILIES, MLP_NAMES, Family
from headloc.lm.layout import PROBE_COLUMNS, PROBE_ROWS, dry_forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ALIGNED = 0.99
"""Least cosine between a site's output and what silencing it takes out of the stream."""


@dataclass(frozen=True, slots=True)
class MlpSite:
    """Where the feed-forward block of one layer can be reached.

    Attributes:
        layer: index of the decoder layer.
        block: module name of the decoder layer.
        module: module name of what puts out the block's addition to the residual stream.
        flat: whether the output is [B T, D] in place of [B, T, D].
    """

    layer: int
    block: str
    module: str
    flat: bool = False


def find_mlps(model: PreTrainedModel, family: Family) -> list[MlpSite]:
    """Locate and verify the feed-forward blocks of a model.

    Args:
        model: a causal language model.
        family: its entry in the table, or what the structural search for heads gave.

    Raises:
        UnsupportedModelError: when there are none, or one breaks the contract.
    """
    known = family.name in FAMILIES
    sites = _located(model, family, (family.mlp,) if known else MLP_NAMES)
    outputs = _outputs(model, sites)
    verified = [_verified(model, site, outputs[site.module]) for site in sites]
    if not known:
        for site in verified:
            _check_added(model, site)
    return verified


def _located(model: PreTrainedModel, family: Family, names: Sequence[str]) -> list[MlpSite]:
    modules = dict(model.named_modules())
    sites = []
    for name, _ in modules[family.layers].named_children():
        block = f"{family.layers}.{name}"
        found = next((f"{block}.{path}" for path in names if f"{block}.{path}" in modules), None)
        if found is not None:
            sites.append(MlpSite(int(name), block, found))
    if sites:
        return sites
    raise UnsupportedModelError(
        f"No feed-forward block was found in {type(model).__name__} (model type {family.name!r}): "
        f"no decoder layer has a module {' or '.join(names)}. Set gates.mlps=false, or name the "
        "module in headloc/lm/families.py."
    )


def _verified(model: PreTrainedModel, site: MlpSite, outputs: Sequence[Tensor]) -> MlpSite:
    if len(outputs) != 1:
        raise _broken(site, "to fire once per forward", f"it fired {len(outputs)} times")
    width = int(model.config.get_text_config().hidden_size)
    shape, full = tuple(outputs[0].shape), (PROBE_ROWS, PROBE_COLUMNS, width)
    if shape == (PROBE_ROWS * PROBE_COLUMNS, width):
        return replace(site, flat=True)
    if shape != full:
        raise _broken(site, f"to put out shape {full}", f"it put out {shape}")
    return site


def _check_added(model: PreTrainedModel, site: MlpSite) -> None:
    """Measure that the layer adds the site's output to the stream.

    Raises:
        UnsupportedModelError: when it does something else with it.
    """
    names = {"block": site.block, "module": site.module}
    with _collecting(model, names) as before:
        dry_forward(model)
    silence = model.get_submodule(site.module).register_forward_hook(_silence)
    try:
        with _collecting(model, names) as after:
            dry_forward(model)
    finally:
        silence.remove()
    gone_SD = (before["block"][0] - after["block"][0]).double().flatten(0, -2)
    m_SD = before["module"][0].double().flatten(0, -2)
    cosine_S = torch.cosine_similarity(gone_SD, m_SD)
    # A block that adds the residual itself would take the whole stream with it.
    rest = after["block"][0].double().norm() / before["block"][0].double().norm()
    if not bool((cosine_S > _ALIGNED).all()) or rest < 1e-6:
        found = f"silencing it changed the stream otherwise (cosine {float(cosine_S.min()):.3f})"
        raise _broken(site, "to put out what the layer adds to the residual stream", found)


def _silence(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def _outputs(model: PreTrainedModel, sites: Sequence[MlpSite]) -> dict[str, list[Tensor]]:
    with _collecting(model, {site.module: site.module for site in sites}) as seen:
        dry_forward(model)
    return seen


@contextmanager
def _collecting(
    model: PreTrainedModel, names: Mapping[str, str]
) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of some modules, by key."""
    seen: dict[str, list[Tensor]] = {key: [] for key in names}
    handles: list[RemovableHandle] = []
    try:
        for key, name in names.items():
            module = model.get_submodule(name)
            handles.append(module.register_forward_hook(partial(_keep, seen[key])))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keep(seen: list[Tensor], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    # A copy: falcon adds the attention to this tensor in place.
    seen.append((output[0] if isinstance(output, tuple) else output).detach().clone())


def _broken(site: MlpSite, expected: str, found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Layer {site.layer}: headloc expected {site.module!r} {expected}, but {found}. The "
        "feed-forward blocks of this architecture cannot be gated; set gates.mlps=false."
    )
