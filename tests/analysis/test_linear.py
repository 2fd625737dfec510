"""Components, angles and random subspaces against planted ones."""

from __future__ import annotations

import pytest
import torch

from headloc.analysis.linear import (
    complement,
    orthonormal,
    overlap,
    principal_angles,
    principal_components,
    random_basis,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted_points(noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points with 3 dimensions of their own in a space of 20."""
    drawn = generator(1)
    basis = random_basis(torch.eye(20, dtype=torch.float64), 3, drawn)
    places = torch.randn(40, 3, generator=drawn, dtype=torch.float64) * torch.tensor(
        [5.0, 2.0, 1.0]
    )
    return places @ basis.T + 7 + noise * torch.randn(40, 20, generator=drawn), basis


def test_components_find_the_planted_subspace_and_nothing_beside_it() -> None:
    points, basis = planted_points()
    found = principal_components(points)
    assert found.basis_DR.shape == (20, 3)
    assert principal_angles(found.basis_DR, basis).max() < 1e-5
    assert found.share_R.sum() == pytest.approx(1.0)
    assert found.dimensions(1.0) == 3
    assert found.dimensions(0.5) == 1
    variance = (points - points.mean(0)).square().sum() / len(points)
    assert found.variance_R.sum() == pytest.approx(float(variance))


@pytest.mark.parametrize("degrees", [1e-6, 0.01, 1.0, 44.0, 46.0, 89.99])
def test_a_planted_rotation_is_found_at_any_size(degrees: float) -> None:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    a = torch.eye(6, dtype=torch.float64)[:, :2]
    b = a.clone()
    b[1, 1], b[4, 1] = angle.cos(), angle.sin()
    angles = principal_angles(a, b)
    assert angles[0] == pytest.approx(0.0, abs=1e-9)
    assert angles[1] == pytest.approx(degrees, rel=1e-6)


def test_a_line_in_a_plane_has_no_angle_to_it() -> None:
    plane = random_basis(torch.eye(9, dtype=torch.float64), 2, generator())
    line = plane @ torch.tensor([[0.6], [0.8]], dtype=torch.float64)
    assert principal_angles(plane, line).tolist() == pytest.approx([0.0], abs=1e-6)
    assert principal_angles(line, plane).tolist() == pytest.approx([0.0], abs=1e-6)
    assert overlap(line, plane) == pytest.approx(1.0)


def test_a_complement_fills_the_space_and_leaves_the_subspace_alone() -> None:
    space = random_basis(torch.eye(12, dtype=torch.float64), 6, generator(2))
    part = random_basis(space, 2, generator(3))
    rest = complement(part, space)
    assert rest.shape == (12, 4)
    assert (part.T @ rest).abs().max() < 1e-12
    torch.testing.assert_close(part @ part.T + rest @ rest.T, space @ space.T)
    assert complement(space, space).shape == (12, 0)


def test_random_subspaces_stay_inside_and_are_uniform() -> None:
    space = random_basis(torch.eye(10, dtype=torch.float64), 5, generator(4))
    drawn = generator(5)
    found = [random_basis(space, 2, drawn) for _ in range(400)]
    for basis in found[:5]:
        torch.testing.assert_close(basis.T @ basis, torch.eye(2, dtype=torch.float64))
        assert (basis - space @ (space.T @ basis)).abs().max() < 1e-12
    mean = torch.stack([basis @ basis.T for basis in found]).mean(0)
    assert (mean - space @ space.T * 2 / 5).abs().max() < 0.1
    assert random_basis(space, 9, drawn).shape == (10, 5)


def test_dependent_columns_count_once() -> None:
    columns = torch.randn(7, 2, generator=generator(), dtype=torch.float64)
    assert orthonormal(torch.cat([columns, columns @ torch.ones(2, 2).double()], 1)).shape == (7, 2)
