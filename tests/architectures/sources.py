"""What a head reads from each source token: the sum over tokens is the head's output.

Shapes: B rows, T columns, H heads of a layer, d head width, D model width, r rank.
"""

from __future__ import annotations

import torch

from headloc.analysis.identity import both_sides, extraction_map
from headloc.analysis.linear import random_basis
from headloc.analysis.reading import prompt_only, read_heads_of
from headloc.analysis.value_maps import value_maps
from headloc.lm.projection import output_weights
from headloc.lm.taps import read_heads
from tests.architectures.models import LOOSE, SINGLE, double_batch, double_lm


@torch.no_grad()
def source_tokens(family: str) -> None:
    """Attention times values, summed over tokens, is what a plain forward gives."""
    lm, batch = double_lm(family), double_batch(family)
    found = read_heads_of(lm, batch, list(lm.layout), inputs=True)
    with read_heads(lm, columns=slice(-1, None)) as plain:
        lm.logits(prompt_only(batch))
    tolerance = 1e-4 if family in (*SINGLE, *LOOSE) else 1e-9
    for position, reading in found.items():
        summed = torch.einsum("bht,bhtd->bhd", reading.attention_BHT, reading.values_BHTd)
        assert (summed - plain.z[position][:, 0]).abs().max() < tolerance


@torch.no_grad()
def extraction(family: str) -> None:
    """Aggregation and extraction: a head's reading of a subspace is linear in its inputs."""
    lm, batch = double_lm(family), double_batch(family)
    readings = read_heads_of(lm, batch, list(lm.layout), inputs=True)
    maps = value_maps(lm, list(readings))
    tolerance = 2e-5 if family in SINGLE else 1e-10
    drawn = torch.Generator().manual_seed(0)
    eye_DD = torch.eye(lm.width, dtype=torch.float64)
    for position, reading in readings.items():
        layer, values = lm.layout.layers[position], maps[position]
        assert reading.inputs_BTD is not None
        n_BTD, scale_BT = reading.inputs_BTD.double(), values.scale(reading.inputs_BTD).double()
        weight_HdD = output_weights(lm, position).double()
        real_BT = prompt_only(batch).mask_BT.bool()
        for row, head in enumerate(reading.heads):
            weight_dD = weight_HdD[head]
            basis_Dr = random_basis(eye_DD, 3, drawn)
            found = extraction_map(values, head, layer.heads, weight_dD, basis_Dr)
            left, right = both_sides(reading, row, found, scale_BT, weight_dD @ basis_Dr)
            assert (left - right).abs().max() < tolerance
            attention_BT = reading.attention_BHT[:, row].double()
            assert (attention_BT * ~real_BT).abs().max() < tolerance
            # Projected on the extraction subspace nothing changes, without it nothing is left.
            inside = found.basis_Dr @ found.basis_Dr.T
            kept = found.aggregated(n_BTD @ inside, scale_BT, attention_BT)
            lost = found.aggregated(n_BTD - n_BTD @ inside, scale_BT, attention_BT)
            bias = (attention_BT * scale_BT).sum(1, keepdim=True) * found.constant_r
            assert (kept - right).abs().max() < 1e-10
            assert (lost - bias).abs().max() < 1e-10
            # Another subspace of that size does change it.
            other = random_basis(eye_DD, 3, drawn)
            changed = found.aggregated(n_BTD @ other @ other.T, scale_BT, attention_BT)
            assert (changed - right).abs().max() > 1e-4
