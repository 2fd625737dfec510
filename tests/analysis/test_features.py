"""Named features: their directions in a head's output and in what it reads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from headloc.analysis.demonstrations import read_demonstrations
from headloc.analysis.feature_reading import correlation, feature_findings, read_feature
from headloc.analysis.features import feature_basis, feature_directions, group_features
from headloc.analysis.head_spaces import HeadSpace, head_spaces
from headloc.analysis.identity import extraction_map
from headloc.analysis.linear import (
    orthonormal,
    principal_angles,
    principal_components,
    random_basis,
)
from headloc.analysis.periodic import numbers_of
from headloc.analysis.prompting import label_columns, prompt_chunks
from headloc.analysis.reading import read_heads_of
from headloc.analysis.regression import quadratures
from headloc.analysis.resampling import Resamples
from headloc.analysis.value_maps import value_maps
from headloc.heads import HeadId
from tests.analysis.subjects import tiny_subject

K = torch.arange(1, 31, dtype=torch.float64)


def planted_space() -> tuple[HeadSpace, torch.Tensor]:
    """A head of width 8 whose task means move on circles of periods 10 and 25 in known planes."""
    drawn = torch.Generator().manual_seed(2)
    planes = random_basis(torch.eye(8, dtype=torch.float64), 4, drawn)
    points = 3 * quadratures(K, 10.0) @ planes[:, :2].T + 4 * quadratures(K, 25.0) @ planes[:, 2:].T
    eye = torch.eye(8, dtype=torch.float64)
    return (
        HeadSpace(
            head=HeadId(0, 0), position=0, tasks=tuple(f"add_{int(k)}" for k in K),
            blocks_KGd=points[:, None], z_Kd=points, weight_dD=eye, inverse_Dd=eye,
            center_d=points.mean(0), components=principal_components(points),
        ),
        planes,
    )  # fmt: skip


def test_the_directions_of_planted_features_are_found_to_within_a_degree() -> None:
    space, planes = planted_space()
    directions = feature_directions(space, K, 4, "unit digit")
    # Of periods 2, 5 and 10 only the last is there; its quadratures stand last.
    assert principal_angles(orthonormal(directions[:, 2:]), planes[:, :2]).max() < 1.0
    assert feature_basis(space, K, 4, "magnitude").shape == (8, 2)


@pytest.mark.parametrize("there", [True, False])
def test_a_feature_that_demonstrations_show_is_read_and_another_is_not(there: bool) -> None:
    space, _ = planted_space()
    drawn = np.random.default_rng(3)
    shown = drawn.integers(30, size=(400, 3))
    said = shown if there else drawn.permuted(shown.ravel()).reshape(shown.shape)
    coordinates = (space.centred_KD @ space.basis(4)).numpy()
    signals = coordinates[said] + 0.2 * drawn.normal(size=(400, 3, 4))
    shared = Resamples(400, seed=0)
    (*_, cosine, sine) = group_features(space, K, 4, "unit digit")
    for feature, wave in ((cosine, torch.cos), (sine, torch.sin)):
        assert feature.period == 10.0
        wanted = wave(2 * math.pi * K / 10).numpy()[shown]
        found = correlation(read_feature(signals, feature), wanted, shared)
        expected = np.corrcoef(read_feature(signals, feature).ravel(), wanted.ravel())[0, 1]
        assert found.value == pytest.approx(expected, abs=5e-3)
        if there:
            assert found.low > 0.95
        else:
            assert found.low < 0 < found.high


def test_what_is_read_from_a_label_token_lies_along_the_extraction_direction() -> None:
    """Read through coordinates of values, and through W^T u on what enters the attention module."""
    subject = tiny_subject(k_max=30)
    numbers = numbers_of(subject)
    examples = subject.examples(6, "test")
    spaces = head_spaces(subject)
    (chunk,) = prompt_chunks(subject.lm, subject.task.template, examples)
    labels = label_columns(chunk)
    readings = read_heads_of(subject.lm, chunk.batch, list(subject.heads), inputs=True)
    for space, signals in zip(
        spaces, read_demonstrations(subject, spaces, 4, examples), strict=True
    ):
        features = group_features(space, numbers, 4, "magnitude")
        directions = feature_directions(space, numbers, 4, "magnitude")
        heads = subject.lm.layout.layers[space.position].heads
        values = value_maps(subject.lm, [space.position])[space.position]
        found = extraction_map(values, space.head.head, heads, space.weight_dD, directions)
        inputs = readings[space.position].inputs_BTD
        assert inputs is not None
        at_labels = inputs[torch.arange(6)[:, None], labels].double()
        expected = at_labels @ found.directions_Dr + found.constant_r
        for index, feature in enumerate(features):
            np.testing.assert_allclose(
                read_feature(signals.signal_PNr, feature), expected[..., index], atol=1e-5
            )


def test_findings_name_every_head_and_feature() -> None:
    space, _ = planted_space()
    shown = np.random.default_rng(5).integers(30, size=(50, 2))
    coordinates = (space.centred_KD @ space.basis(4)).numpy()
    (signals,) = read_demonstrations(
        subject := tiny_subject(),
        head_spaces(subject)[:1],
        4,
        subject.examples(50, "test", shots=2),
    )
    planted = replace(signals, signal_PNr=coordinates[shown])
    found = feature_findings([space], [planted], shown, K, 4, seed=0)
    (table,) = found.tables
    assert len(table.rows) == 1 + 4 + 2
    assert found.scalars["L0H0/extracted/unit_digit/10_0"] == pytest.approx(1.0, abs=1e-6)
