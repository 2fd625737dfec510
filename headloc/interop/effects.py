"""Indirect effects as function_vectors saves them: a tensor of trials by layers by heads.

Shapes: N trials, L layers, H heads, C token classes (the last class is the last token).
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor

from headloc.errors import CircuitError
from headloc.heads import HeadId
from headloc.interop.found import ForeignHeads
from headloc.interop.untrusted import LARGEST, file_bytes

_FORM = "a tensor of trials by layers by heads (by token classes)"


def read_effects(path: Path) -> ForeignHeads:
    """Read average indirect effects; nothing but tensors is ever unpickled.

    Raises:
        CircuitError: for a file that is not such a tensor.
    """
    content = io.BytesIO(file_bytes(path))
    try:
        # It warns of pickles that torch has not written; what it cannot read it refuses anyway.
        with warnings.catch_warnings(action="ignore"):
            loaded = torch.load(content, map_location="cpu", weights_only=True)
    # The restricted loader raises exceptions of any kind on files that are broken or not allowed.
    except Exception as error:
        line = (str(error).splitlines() or ["broken"])[0]
        raise CircuitError(
            f"{path} cannot be read as a tensor ({line:.80}). Expected: {_FORM}."
        ) from None
    fits = isinstance(loaded, Tensor) and loaded.ndim in (3, 4) and loaded.is_floating_point()
    if not fits:
        raise CircuitError(f"{path} does not hold what is expected: {_FORM}.")
    # A small file can describe a tensor that repeats its numbers without end.
    if not 0 < loaded.numel() <= LARGEST:
        raise CircuitError(f"{path} holds {loaded.numel()} numbers; expected {_FORM}.")
    effect_NLH = loaded[..., -1] if loaded.ndim == 4 else loaded
    mean_LH = effect_NLH.double().mean(0)
    if not bool(torch.isfinite(mean_LH).all()):
        raise CircuitError(f"{path} holds NaN or infinity.")
    layers, heads = mean_LH.shape
    scores = {
        HeadId(layer, head): value
        for layer, row in enumerate(mean_LH.tolist())
        for head, value in enumerate(row)
    }
    return ForeignHeads(None, scores, complete=True, layers=layers, heads=heads)
