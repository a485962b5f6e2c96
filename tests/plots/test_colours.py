"""Category colours: order, greys, and distances that colour-blind readers see."""

from __future__ import annotations

import matplotlib.colors
import numpy as np
import pytest

from fastvae.plots.colours import FEW, GREY, MANY, MOST, category_codes, category_colours


def test_category_codes_are_in_natural_order_with_no_category_last():
    codes, names = category_codes(
        ["batch_10", None, "batch_2", float("nan"), "Unassigned", "batch_2"]
    )
    assert names == ["batch_2", "batch_10", "Unassigned", "unknown"]
    np.testing.assert_array_equal(codes, [1, 3, 0, 3, 2, 0])
    assert category_colours(names) == [FEW[0], FEW[1], GREY, GREY]
    assert category_colours([f"c{i}" for i in range(20)]) == MANY
    assert category_colours([f"c{i}" for i in range(21)]) == MOST[:21]
    assert category_colours([*(f"c{i}" for i in range(100)), "unknown"]) == [*MOST, GREY]
    assert category_colours([f"c{i}" for i in range(101)]) is None


VIEWS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
}
TO_CONE = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def smallest_distance(palette: list[str], view: str) -> float:
    """Smallest Oklab distance (x 100) of two colours, through one of Machado's 2009 simulations."""
    rgb = matplotlib.colors.to_rgba_array([*palette, GREY])[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(VIEWS[view]), 0, 1)
    lab = 100 * np.cbrt(seen @ np.transpose(TO_CONE)) @ np.transpose(TO_LAB)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1e9 * np.eye(len(lab))
    return float(distance.min())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("palette", [FEW, MANY])
def test_palettes_are_apart_for_colour_blind_readers(palette, view):
    assert smallest_distance(palette, view) > 7.5


@pytest.mark.parametrize(("number", "apart"), [(21, 11.0), (40, 9.0), (60, 7.0), (100, 5.6)])
def test_the_large_palette_is_as_far_apart_as_its_size_allows(number, apart):
    """Colour-blind readers cannot tell a hundred colours apart; half as far is what is left."""
    assert len(set(MOST)) == 100
    assert smallest_distance(MOST[:number], "normal") > apart
    for view in ("protanopia", "deuteranopia"):
        assert smallest_distance(MOST[:number], view) > 2.8
