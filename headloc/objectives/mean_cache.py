"""Task means on disk: one file per task, named by everything that the mean depends on.

Shapes: H heads of a layer, d head width, D model width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from headloc.files import write_bytes

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import TaskFamily

log = logging.getLogger(__name__)

MeanKind = Literal["few_shot", "shuffled", "zero_shot"]
"""Prompts a mean is taken over: few-shot, few-shot with shuffled labels, or the query alone."""

_BLOCK = "mlp/"


@dataclass(frozen=True, slots=True)
class OneMean:
    """The means of one task.

    Attributes:
        z: per layer of the layout, z_Hd in float32.
        mlps: per feed-forward block, m_D in float32; empty where only heads were read.
    """

    z: tuple[Tensor, ...]
    mlps: tuple[Tensor, ...] = ()


def cache_name(
    lm: FrozenLM,
    task: TaskFamily,
    name: str,
    prompts: int,
    seed: int,
    kind: MeanKind,
    mlps: bool,
) -> str:
    """Return the file name of a mean: a hash over everything that it depends on."""
    content: dict[str, Any] = {
        "model": lm.source.fingerprint,
        "revision": lm.source.revision,
        "dtype": lm.source.dtype,
        "task": {key: value for key, value in task.describe().items() if key != "held_out"},
        "name": name,
        "prompts": prompts,
        "seed": seed,
        "kind": kind,
    }
    if mlps:
        content["mlps"] = True
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"means-{digest[:32]}.safetensors"


class MeanCache:
    """A folder of means; one that cannot be written to is told once, and read all the same.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._writable = True

    def keep(self, name: str, means: OneMean) -> None:
        """Write a mean under a name that `cache_name` gave."""
        if not self._writable:
            return
        named = {f"{i:03d}": part.contiguous() for i, part in enumerate(means.z)}
        named |= {f"{_BLOCK}{i:03d}": part.contiguous() for i, part in enumerate(means.mlps)}
        try:
            write_bytes(self.folder / name, save(named, metadata={"format": "pt"}))
        except OSError as error:
            self._writable = False
            log.warning(
                "objective.cache_dir=%s cannot be written to (%s): the means of this run are not "
                "kept there.",
                self.folder,
                error.strerror,
            )

    def read(self, name: str, lm: FrozenLM, mlps: bool) -> OneMean | None:
        """Return a mean; a broken or foreign file counts as none and is estimated again."""
        try:
            tensors = load_file(self.folder / name)
        except (SafetensorError, OSError, ValueError):
            return None
        names = sorted(tensors)
        found = OneMean(
            tuple(tensors[name] for name in names if not name.startswith(_BLOCK)),
            tuple(tensors[name] for name in names if name.startswith(_BLOCK)),
        )
        heads = [(layer.heads, layer.width) for layer in lm.layout.layers]
        blocks = [(lm.width,) for _ in lm.mlps] if mlps else []
        shapes = [tuple(part.shape) for part in (*found.z, *found.mlps)]
        whole = all(bool(part.isfinite().all()) for part in (*found.z, *found.mlps))
        return found if whole and shapes == [*heads, *blocks] else None
