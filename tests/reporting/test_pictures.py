from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from headloc.heads import HeadId
from headloc.reporting.picture_heads import _grid
from headloc.reporting.pictures import picture_path, save_pictures
from headloc.reporting.rows import head_rows
from tests.reporting.made_up import made_up_result


def test_png_and_svg_of_every_picture(tmp_path: Path) -> None:
    paths = save_pictures(made_up_result(), tmp_path)
    assert {path.name for path in paths} == {
        f"{name}.{kind}" for name in ("heads", "training", "accuracies") for kind in ("png", "svg")
    }
    assert picture_path(tmp_path, "heads") in paths
    for path in paths:
        start = path.read_bytes()[:5]
        assert start == (b"\x89PNG\r" if path.suffix == ".png" else b"<?xml")


def test_svg_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    first = save_pictures(made_up_result(), tmp_path / "a")
    second = save_pictures(made_up_result(), tmp_path / "b")
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert b"<dc:date>" not in first[1].read_bytes()


def test_layers_with_fewer_heads_leave_cells_empty(tmp_path: Path) -> None:
    result = made_up_result()
    model = {**result.circuit.model, "heads": [2, 3], "layer_indices": [1, 4]}
    circuit = replace(
        result.circuit,
        model=model,
        heads=(HeadId(4, 2),),
        gates=torch.linspace(0, 1, 5),
        scores=torch.linspace(0, 1, 5),
    )
    grid_LH = _grid(head_rows(circuit), [1, 4])
    assert np.isnan(grid_LH).tolist() == [[False, False, True], [False, False, False]]
    assert save_pictures(replace(result, circuit=circuit, replicates=()), tmp_path)


def test_pyplot_is_left_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_pictures(made_up_result(), tmp_path)
    assert dict(matplotlib.rcParams) == before
