"""Latent pictures: coordinates against the SVD, and each point's place, colour and order."""

from __future__ import annotations

import importlib.util
import warnings

import matplotlib.colors
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from fastvae.errors import InputError
from fastvae.plots import figures as plots
from fastvae.plots import projection
from fastvae.plots.colours import FEW, GREY


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 5, (4, 6))
    return centres[np.arange(300) % 4] + rng.normal(size=(300, 6))


def test_principal_components_agree_with_the_svd(latent):
    coordinates, names = projection.project(latent, method="pca")
    centred = latent - latent.mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * singular[:2]
    signs = np.sign((expected * coordinates).sum(axis=0))
    np.testing.assert_allclose(coordinates, expected * signs, atol=1e-9)
    largest = right[:2][[0, 1], np.abs(right[:2]).argmax(axis=1)]
    np.testing.assert_array_equal(signs, np.sign(largest))
    share = singular**2 / (singular**2).sum()
    assert names == tuple(f"PC {i + 1} ({share[i]:.0%} of variance)" for i in range(2))


@pytest.mark.parametrize("n_latent", [1, 2])
def test_few_dimensions(n_latent):
    latent = np.random.default_rng(1).normal(size=(40, n_latent))
    coordinates, _ = projection.project(latent)  # auto: nothing to reduce, so never UMAP
    assert coordinates.shape == (40, 2)
    spread = ((coordinates - coordinates.mean(axis=0)) ** 2).sum()
    assert spread == pytest.approx(((latent - latent.mean(axis=0)) ** 2).sum())
    if n_latent == 1:
        assert (coordinates[:, 1] == 0).all()


@pytest.mark.parametrize("n_cells", [1, 2])
def test_identical_or_single_cells_have_coordinates(n_cells):
    coordinates, names = projection.project(np.ones((n_cells, 5)))
    np.testing.assert_array_equal(coordinates, np.zeros((n_cells, 2)))
    assert names == ("PC 1 (0% of variance)", "PC 2 (0% of variance)")


@pytest.mark.parametrize(
    ("bad", "arguments", "message"),
    [
        (np.zeros(5), {}, r"shape \(5,\); expected \(cells, dimensions\)"),
        (np.zeros((0, 5)), {}, "not empty"),
        (np.array([[0.0], [np.nan]]), {}, "cell 1 is not finite"),
        (np.zeros((5, 3)), {"method": "tsne"}, "method='tsne' is not known; choose one of"),
    ],
)
def test_bad_latent(bad, arguments, message):
    with pytest.raises(InputError, match=message):
        projection.project(bad, **arguments)


def test_umap_that_is_not_there(monkeypatch, latent):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'UMAP is not installed; pip install "fastvae\[umap\]"'):
        projection.project(latent, method="umap")
    _, names = projection.project(latent)
    assert names[0].startswith("PC 1")


def test_umap_is_used_where_it_serves(monkeypatch, latent):
    asked = []

    def recorded(points: np.ndarray, seed: int) -> np.ndarray:
        asked.append((points.shape, seed))
        return points[:, :2]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(projection, "umap_coordinates", recorded)
    assert projection.project(latent, seed=3)[1] == ("UMAP 1", "UMAP 2")
    assert asked == [((300, 6), 3)]
    for small in (latent[:14], latent[:, :2]):
        assert projection.project(small)[1][0].startswith("PC 1")
    with pytest.raises(InputError, match="UMAP needs 15 cells or more, there are 14"):
        projection.project(latent[:14], method="umap")
    monkeypatch.setattr(projection, "UMAP_CELLS", (15, 299))
    assert projection.project(latent)[1][0].startswith("PC 1")


def test_umap_is_silent_repeatable_and_keeps_groups_apart(latent):
    pytest.importorskip("umap", reason="umap-learn is an extra")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = projection.umap_coordinates(latent, seed=1)
        again = projection.umap_coordinates(latent, seed=1)
    np.testing.assert_array_equal(first, again)
    distance = np.linalg.norm(first[:, None] - first[None], axis=2) + np.eye(300) * 1e9
    assert (distance.argmin(axis=1) % 4 == np.arange(300) % 4).mean() > 0.99


def drawn(collection) -> np.ndarray:
    return np.asarray(collection.get_offsets())


def test_category_panels_colour_each_cell_by_its_label(latent):
    coordinates, names = projection.project(latent, method="pca")
    labels = np.array(["b", "a", "unknown", "c"])[np.arange(300) % 4]
    figure = plots.latent_figure(coordinates, names, categories={"type": labels}, seed=2)
    (axis,) = figure.axes
    assert axis.get_title() == "type"
    assert (axis.get_xlabel(), axis.get_ylabel()) == names
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b", "c", "unknown"]
    (points,) = axis.collections
    place = {tuple(xy): cell for cell, xy in enumerate(coordinates)}
    cells = np.array([place[tuple(xy)] for xy in drawn(points)])
    assert sorted(cells) == list(range(300))
    assert not np.array_equal(cells, np.arange(300))  # drawn in random order
    wanted = {"a": FEW[0], "b": FEW[1], "c": FEW[2], "unknown": GREY}
    expected = matplotlib.colors.to_rgba_array([wanted[label] for label in labels[cells]])
    np.testing.assert_allclose(points.get_facecolors()[:, :3], expected[:, :3])


def test_marker_panels_draw_the_highest_on_top(latent):
    coordinates, names = projection.project(latent, method="pca")
    counts = np.random.default_rng(3).poisson(np.where(np.arange(300) % 4 == 0, 5.0, 0.2))
    figure = plots.latent_figure(coordinates, names, markers={"CD3D": counts, "LYZ": counts * 0})
    axis = next(axis for axis in figure.axes if axis.get_title() == "CD3D")
    none, some = axis.collections
    place = {tuple(xy): cell for cell, xy in enumerate(coordinates)}
    below = [place[tuple(xy)] for xy in drawn(none)]
    above = [place[tuple(xy)] for xy in drawn(some)]
    assert sorted(below) == list(np.flatnonzero(counts == 0))
    np.testing.assert_allclose(np.asarray(some.get_array()), np.log1p(counts[above]))
    assert (np.diff(counts[above]) >= 0).all()
    silent = next(axis for axis in figure.axes if axis.get_title() == "LYZ")
    assert len(drawn(silent.collections[0])) == 300
    assert {"log(1 + expression)"} == {a.get_ylabel() for a in figure.axes if not a.get_title()}


def test_twenty_categories_have_a_legend_and_more_have_a_note(latent):
    coordinates, names = projection.project(latent, method="pca")
    labels = {f"{n}": np.array([f"c{i % n}" for i in range(300)]) for n in (20, 21)}
    few, many = plots.latent_figure(coordinates, names, categories=labels).axes
    entries = [text.get_text() for text in few.get_legend().get_texts()]
    assert entries == [f"c{i}" for i in range(20)]
    assert many.get_legend() is None
    assert many.get_title() == "21 (21 categories)"


def test_plot_latent_returns_the_coordinates_and_writes_the_picture(latent, tmp_path):
    rng = np.random.default_rng(4)
    arguments = {
        "categories": {
            "batch": rng.integers(0, 3, 300),
            "type": pd.Categorical(["x", None, "$a_b$"] * 100),
        },
        "markers": {
            name: rng.poisson(1.0, 300) for name in ("CD3D", "MS4A1", "LYZ", "_odd", "細胞")
        },
    }
    coordinates = plots.plot_latent(latent, tmp_path / "a.png", **arguments, method="pca", dpi=50)
    np.testing.assert_array_equal(coordinates, projection.project(latent, method="pca")[0])
    pixels = matplotlib.image.imread(tmp_path / "a.png")
    assert pixels.shape[1] == 700  # 14 inches
    assert 0.05 < (pixels[..., :3] < 0.95).any(axis=2).mean() < 0.6
    plots.plot_latent(latent, tmp_path / "b.png", **arguments, method="pca", dpi=50)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_latent_without_colourings_is_drawn_too(latent, tmp_path):
    plots.plot_latent(latent, tmp_path / "plain.png", method="pca", dpi=40)
    pixels = matplotlib.image.imread(tmp_path / "plain.png")
    assert pixels.shape[1] == 240  # 6 inches
    assert (pixels[..., :3] < 0.95).any(axis=2).mean() > 0.005


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"categories": {"batch": ["a"] * 299}}, "'batch' has 299 values for 300 cells"),
        ({"markers": {"CD4": 3.0}}, "marker 'CD4' has 1 values"),
        ({"markers": {"CD4": np.full(300, -0.5)}}, "'CD4' has negative or non-finite values"),
        ({"markers": {"CD4": np.full(300, np.nan)}}, "'CD4' has negative or non-finite values"),
    ],
)
def test_bad_colourings(latent, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        plots.plot_latent(latent, tmp_path / "bad.png", method="pca", **arguments)
    assert list(tmp_path.iterdir()) == []
