"""Find a model's heads: the family table or a structural search, proved by a dry forward.

A *site* is one attention output projection.  The contract that makes its input a row of heads is
checked by running the model on a few tokens: every site fires exactly once, on an input of shape
`[B, T, in_features]`, with `in_features` divisible by the number of heads.  The width of a head is
always `in_features // heads` of that layer: `hidden_size // heads` and `config.head_dim` are wrong
for many families (Gemma, Qwen3, multi-head latent attention).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headloc.errors import UnsupportedModelError
from headloc.faults import out_of_memory
from headloc.heads import HeadLayout, LayerHeads
from headloc.lm.families import FAMILIES, PROJECTION_NAMES, REFUSED, Family
from headloc.lm.finite import check_model
from headloc.lm.passes import no_room

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_ROWS, PROBE_COLUMNS = 2, 3
"""Size of a dry forward."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where the heads of one layer can be reached.

    Attributes:
        layer: index of the decoder layer.
        block: module name of the decoder layer.
        attention: module name of its attention module.
        projection: module name of the attention's output projection.
    """

    layer: int
    block: str
    attention: str
    projection: str


def locate_heads(model: PreTrainedModel) -> list[Site]:
    """The sites of a decoder-only language model, in the order of its layers.

    Raises:
        UnsupportedModelError: when the model is an encoder-decoder, is known to break the contract,
            or has no attention that can be found.
    """
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{config.model_type!r} is an encoder-decoder; headloc reads the heads of decoder-only "
            "language models. Give a causal language model (gpt2, llama, qwen3, ...)."
        )
    if config.model_type in REFUSED:
        raise UnsupportedModelError(
            f"{config.model_type!r} cannot be localized: {REFUSED[config.model_type]}. "
            f"Supported families: {', '.join(sorted(FAMILIES))}."
        )
    family = FAMILIES.get(config.model_type)
    return _search(model) if family is None else _from_table(model, family)


def family_of(model: PreTrainedModel, sites: Sequence[Site]) -> Family:
    """The table's entry for the model, or one that describes what the structural search found."""
    known = FAMILIES.get(model.config.model_type)
    if known is not None:
        return known
    first = sites[0]
    attention, _, out_proj = first.projection.removeprefix(f"{first.block}.").rpartition(".")
    return Family(model.config.model_type, first.block.rpartition(".")[0], attention, out_proj)


def _from_table(model: PreTrainedModel, family: Family) -> list[Site]:
    """The sites at the places the table names, skipping layers that have no attention."""
    modules = dict(model.named_modules())
    if family.layers not in modules:
        raise UnsupportedModelError(
            f"A {type(model).__name__} of model type {family.name!r} has no module "
            f"{family.layers!r}. Load the model with its language-model head "
            "(transformers.AutoModelForCausalLM), not the bare encoder."
        )
    sites = []
    for name, _ in modules[family.layers].named_children():
        block = f"{family.layers}.{name}"
        attention = f"{block}.{family.attention}"
        projection = f"{attention}.{family.out_proj}"
        if projection in modules:
            sites.append(Site(int(name), block, attention, projection))
    return _not_empty(model, sites)


def _search(model: PreTrainedModel) -> list[Site]:
    """Attention modules recognised by structure: `layer_idx`, class name, last projection."""
    sites = []
    for name, module in model.named_modules():
        children = [child for child, _ in module.named_children() if child in PROJECTION_NAMES]
        looks_right = type(module).__name__.endswith("Attention") and children
        if not looks_right or not isinstance(getattr(module, "layer_idx", None), int):
            continue
        block = _enclosing_layer(name)
        if block is not None:
            layer = int(block.rpartition(".")[2])
            sites.append(Site(layer, block, name, f"{name}.{children[-1]}"))
    _not_empty(model, sites)
    stacks = {site.block.rpartition(".")[0] for site in sites}
    if len(stacks) > 1 or len({site.layer for site in sites}) < len(sites):
        raise UnsupportedModelError(
            f"Model type {model.config.model_type!r} is not in headloc's table, and its attention "
            f"modules do not form one stack of layers (found in {', '.join(sorted(stacks))}). "
            "Add the family to headloc/lm/families.py."
        )
    return sorted(sites, key=lambda site: site.layer)


def _enclosing_layer(name: str) -> str | None:
    """The longest prefix of a module name that ends in a number: its decoder layer."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if parts[end - 1].isdigit():
            return ".".join(parts[:end])
    return None


def _not_empty(model: PreTrainedModel, sites: list[Site]) -> list[Site]:
    if sites:
        return sites
    raise UnsupportedModelError(
        f"No attention layer with an output projection was found in {type(model).__name__} (model "
        f"type {model.config.model_type!r}). Expected a module with `layer_idx`, a class name that "
        f"ends in 'Attention', and a projection named {', '.join(PROJECTION_NAMES)}. Models "
        "without attention have no heads to localize."
    )


def verify_heads(model: PreTrainedModel, sites: Sequence[Site]) -> HeadLayout:
    """Run the model on a few tokens and return the layout that its sites prove to have.

    Raises:
        UnsupportedModelError: when the forward fails or a site breaks the contract.
    """
    seen: dict[str, list[tuple[int, ...]]] = {site.projection: [] for site in sites}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(_record_shape, shapes))
        for name, shapes in seen.items()
    ]
    try:
        dry_forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return HeadLayout(tuple(_layer_heads(model, site, seen[site.projection]) for site in sites))


def _record_shape(shapes: list[tuple[int, ...]], module: nn.Module, args: tuple[Any, ...]) -> None:
    shapes.append(tuple(args[0].shape))


@torch.no_grad()
def dry_forward(model: PreTrainedModel) -> None:
    """Run the model on a few tokens, `[PROBE_ROWS, PROBE_COLUMNS]`.

    Raises:
        UnsupportedModelError: when the forward fails or gives no logits.
        NoRoomError: when memory ran out, which says nothing about the model.
        NonFiniteError: when it gives NaN or infinity.
    """
    vocab = model.config.get_text_config().vocab_size
    ids = torch.arange(PROBE_ROWS * PROBE_COLUMNS, device=model.device) % vocab
    ids_BT = ids.view(PROBE_ROWS, PROBE_COLUMNS)
    forward: Callable[..., Any] = model
    try:
        out = forward(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
    except Exception as error:
        if out_of_memory(error):
            raise no_room("a trial forward on a few tokens") from error
        raise UnsupportedModelError(
            f"A trial forward of {type(model).__name__} on {ids_BT.numel()} tokens failed with "
            f"{type(error).__name__}: {error}. Expected a causal language model that runs on "
            "input_ids and attention_mask."
        ) from error
    if not isinstance(getattr(out, "logits", None), Tensor):
        raise UnsupportedModelError(
            f"{type(model).__name__} returns no logits. Load the model with its language-model "
            "head (transformers.AutoModelForCausalLM)."
        )
    check_model(model, out.logits)


def _layer_heads(
    model: PreTrainedModel, site: Site, shapes: Sequence[tuple[int, ...]]
) -> LayerHeads:
    """The heads of one layer, after every check of the contract."""
    if len(shapes) != 1:
        raise _broken(site, "to fire once per forward", f"it fired {len(shapes)} times")
    projection = model.get_submodule(site.projection)
    features = _in_features(projection, shapes[0][-1])
    if shapes[0] != (PROBE_ROWS, PROBE_COLUMNS, features):
        expected = f"an input of shape {(PROBE_ROWS, PROBE_COLUMNS, features)}"
        raise _broken(site, expected, f"it received {shapes[0]}")
    heads = _query_heads(model, site.layer)
    if heads < 1 or features % heads:
        raise _broken(site, f"in_features to be a multiple of {heads} heads", f"it is {features}")
    attention = model.get_submodule(site.attention)
    return LayerHeads(site.layer, heads, features // heads, _kv_heads(model, attention, heads))


def _broken(site: Site, expected: str, found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Layer {site.layer}: headloc expected {site.projection!r} {expected}, but {found}. "
        "The heads of this architecture cannot be told apart there; please report the model type."
    )


def _in_features(projection: nn.Module, otherwise: int) -> int:
    """Input width of a projection: Linear (also quantised), Conv1D, or as observed."""
    for name in ("in_features", "nx"):
        value = getattr(projection, name, None)
        if isinstance(value, int):
            return value
    return otherwise


def _query_heads(model: PreTrainedModel, layer: int) -> int:
    heads = getattr(model.config.get_text_config(), "num_attention_heads", 0)
    return heads[layer] if isinstance(heads, Sequence) else int(heads or 0)


def _kv_heads(model: PreTrainedModel, attention: nn.Module, heads: int) -> int:
    """Key/value heads of a layer, as its attention module knows them, else the config."""
    groups = getattr(attention, "num_key_value_groups", None)
    if isinstance(groups, int) and groups > 0:
        return max(1, heads // groups)
    config = model.config.get_text_config()
    sources = (
        (attention, "num_kv_heads"),
        (attention, "kv_heads"),
        (config, "num_key_value_heads"),
    )
    for owner, name in sources:
        value = getattr(owner, name, None)
        if isinstance(value, int) and value > 0 and heads % value == 0:
            return value
    return heads
