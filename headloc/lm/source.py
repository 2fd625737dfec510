"""Which model this is: the identity that a circuit records and is later checked against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headloc.errors import HeadlocError
from headloc.heads import HeadLayout
from headloc.lm.placement import in_place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLED = 32
_VOLATILE = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Identity of a frozen model.

    Attributes:
        name: path or hub id it was loaded from, or the name its config carries.
        revision: hub revision, when one was asked for.
        model_type: architecture, as `config.model_type`.
        dtype: dtype of the weights, for example `bfloat16`.
        layers: number of layers that carry heads.
        layer_indices: index of each of them in the model; hybrids have gaps.
        heads: query heads of each of them.
        width: width D of the residual stream.
        vocab_size: rows of the output vocabulary V.
        fingerprint: sha256 over the configuration and a sample of every weight; the same in every
            process, and for the same checkpoint loaded in a wider dtype.
    """

    name: str
    revision: str | None
    model_type: str
    dtype: str
    layers: int
    layer_indices: tuple[int, ...]
    heads: tuple[int, ...]
    width: int
    vocab_size: int
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return {
            **asdict(self),
            "heads": list(self.heads),
            "layer_indices": list(self.layer_indices),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSource:
        """Read `to_dict` back; unknown keys are ignored, so that newer files can be read.

        Raises:
            HeadlocError: when a field is missing.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in data]
        if missing:
            raise HeadlocError(
                f"The description of a model lacks {', '.join(missing)}. It was not written by "
                "headloc, or has been cut short."
            )
        values = {name: data[name] for name in names}
        return cls(
            **{
                **values,
                "heads": tuple(values["heads"]),
                "layer_indices": tuple(values["layer_indices"]),
            }
        )


def describe(
    model: PreTrainedModel, layout: HeadLayout, *, name: str, revision: str | None
) -> ModelSource:
    """The identity of a loaded model."""
    config = model.config.get_text_config()
    return ModelSource(
        name=name,
        revision=revision,
        model_type=model.config.model_type,
        dtype=str(model.dtype).removeprefix("torch."),
        layers=len(layout.layers),
        layer_indices=tuple(layer.layer for layer in layout.layers),
        heads=tuple(layer.heads for layer in layout.layers),
        width=config.hidden_size,
        vocab_size=config.vocab_size,
        fingerprint=fingerprint(model),
    )


def fingerprint(model: PreTrainedModel) -> str:
    """Sha256 over the configuration and the first and last values of every parameter."""
    digest = hashlib.sha256()
    digest.update(json.dumps(_stable(model.config.to_diff_dict()), sort_keys=True).encode())
    for name, sample in _samples(model):
        digest.update(name.encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _stable(value: Any) -> Any:
    """A configuration without the entries that change although the model does not."""
    if isinstance(value, Mapping):
        # to_diff_dict writes integer keys (id2label) in memory and strings after a reload.
        kept = {str(key): item for key, item in value.items() if str(key) not in _VOLATILE}
        return {key: _stable(item) for key, item in kept.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)


@torch.no_grad()
def _samples(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Name with shape, and a few values, of every parameter that has values."""
    for name, _ in model.named_parameters():
        parameter = in_place(model, name)
        if parameter is None:
            continue
        flat = parameter.detach().reshape(-1)
        # Widening is exact, so that a bfloat16 checkpoint loaded as float32 is the same model.
        ends = torch.cat([flat[:_SAMPLED], flat[-_SAMPLED:]]).to(torch.float32)
        yield f"{name}{tuple(parameter.shape)}", ends.cpu()
