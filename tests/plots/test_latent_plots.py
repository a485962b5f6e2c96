"""Latent pictures: coordinates against the SVD, and each point's place, colour and order."""

from __future__ import annotations

import importlib.util
import warnings

import matplotlib.colors
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fastvae.errors import InputError
from fastvae.plots import figures as plots
from fastvae.plots import projection
from fastvae.plots.colours import FEW, GREY
from fastvae.plots.labels import shortened_name


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 5, (4, 6))
    return centres[np.arange(300) % 4] + rng.normal(size=(300, 6))


def test_principal_components_agree_with_the_svd(latent):
    found = projection.project(latent, method="pca")
    coordinates, names = found.coordinates, found.axis_names
    assert found.note == "principal components"
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
    found = projection.project(latent)  # auto: nothing to reduce, so never UMAP, and no warning
    coordinates = found.coordinates
    assert found.note == "principal components"
    assert coordinates.shape == (40, 2)
    spread = ((coordinates - coordinates.mean(axis=0)) ** 2).sum()
    assert spread == pytest.approx(((latent - latent.mean(axis=0)) ** 2).sum())
    if n_latent == 1:
        assert (coordinates[:, 1] == 0).all()


@pytest.mark.parametrize("n_cells", [1, 2])
def test_identical_or_single_cells_have_coordinates(n_cells):
    with pytest.warns(UserWarning, match=f"UMAP needs 15 cells or more, there are {n_cells}"):
        found = projection.project(np.ones((n_cells, 5)))
    np.testing.assert_array_equal(found.coordinates, np.zeros((n_cells, 2)))
    assert found.axis_names == ("PC 1 (0% of variance)", "PC 2 (0% of variance)")


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


def test_umap_that_is_not_there(monkeypatch, latent, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"UMAP is not installed \(pip install umap-learn\)"):
        projection.project(latent, method="umap")
    with pytest.warns(UserWarning, match="drawn as principal components, not as UMAP") as said:
        found = projection.project(latent)
    assert len(said) == 1
    assert found.axis_names[0].startswith("PC 1")
    assert found.note == "principal components: UMAP is not installed (pip install umap-learn)"
    assert projection.umap_of(latent) is None


def test_umap_is_used_where_it_serves(monkeypatch, latent):
    asked = []

    def recorded(points: np.ndarray, seed: int) -> np.ndarray:
        asked.append((points.shape, seed))
        return points[:, :2]

    monkeypatch.setattr(projection, "umap_coordinates", recorded)
    assert projection.project(latent, seed=3).axis_names == ("UMAP 1", "UMAP 2")
    assert asked == [((300, 6), 3)]
    np.testing.assert_array_equal(projection.umap_of(latent), latent[:, :2])
    assert projection.project(latent[:, :2]).axis_names[0].startswith("PC 1")
    with pytest.warns(UserWarning, match="UMAP needs 15 cells or more, there are 14"):
        assert projection.project(latent[:14]).axis_names[0].startswith("PC 1")
    with pytest.raises(InputError, match="UMAP needs 15 cells or more, there are 14"):
        projection.project(latent[:14], method="umap")
    monkeypatch.setattr(projection, "UMAP_CELLS", (15, 299))
    with pytest.warns(UserWarning, match="UMAP takes long for more than 299 cells"):
        assert projection.project(latent).axis_names[0].startswith("PC 1")
    assert projection.project(latent, method="umap").note == "UMAP"


def groups_kept(coordinates: np.ndarray) -> float:
    """The share of cells whose nearest neighbour is of their group, one of every fourth cell."""
    n_cells = len(coordinates)
    distance = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=2)
    nearest = (distance + np.eye(n_cells) * 1e9).argmin(axis=1)
    return float((nearest % 4 == np.arange(n_cells) % 4).mean())


def test_umap_is_silent_repeatable_and_keeps_groups_apart(latent, capfd):
    pytest.importorskip("scranpy", reason="has no wheels for this machine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = projection.umap_coordinates(latent, seed=1)
        again = projection.umap_coordinates(latent, seed=1)
    assert capfd.readouterr() == ("", "")
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, projection.umap_coordinates(latent, seed=2))
    assert groups_kept(first) > 0.99
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        np.testing.assert_array_equal(first, projection.umap_coordinates(latent, seed=1))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_umap_does_not_depend_on_the_unit(latent, scale):
    pytest.importorskip("scranpy", reason="has no wheels for this machine")
    assert groups_kept(projection.umap_coordinates(scale * latent, seed=0)) > 0.99


def test_umap_of_identical_cells_is_finite():
    pytest.importorskip("scranpy", reason="has no wheels for this machine")
    assert np.isfinite(projection.umap_coordinates(np.ones((20, 4)), seed=0)).all()


def test_umap_learn_takes_its_place(monkeypatch, latent):
    pytest.importorskip("umap", reason="umap-learn is an extra")
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "scranpy" else known(name)
    )
    assert groups_kept(projection.umap_coordinates(latent, seed=1)) > 0.99


def flat(latent: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    found = projection.project(latent, method="pca")
    return found.coordinates, found.axis_names


def drawn(collection) -> np.ndarray:
    return np.asarray(collection.get_offsets())


def test_category_panels_colour_each_cell_by_its_label(latent):
    coordinates, names = flat(latent)
    labels = np.array(["b", "a", "unknown", "c"])[np.arange(300) % 4]
    figure = plots.latent_figure(coordinates, names, categories={"type": labels}, seed=2)
    (axis,) = figure.axes
    assert axis.get_title(loc="left") == "type"
    assert (axis.get_xlabel(), axis.get_ylabel()) == names
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b", "c", "unknown"]
    (points,) = axis.collections
    place = {tuple(xy): cell for cell, xy in enumerate(coordinates)}
    cells = np.array([place[tuple(xy)] for xy in drawn(points)])
    assert sorted(cells) == list(range(300))
    assert (labels[cells[:75]] == "unknown").all()  # behind the others
    assert not np.array_equal(cells[75:], np.sort(cells[75:]))  # drawn in random order
    assert axis.get_aspect() == 1.0
    wanted = {"a": FEW[0], "b": FEW[1], "c": FEW[2], "unknown": GREY}
    expected = matplotlib.colors.to_rgba_array([wanted[label] for label in labels[cells]])
    np.testing.assert_allclose(points.get_facecolors()[:, :3], expected[:, :3])


def test_marker_panels_draw_the_highest_on_top(latent):
    coordinates, names = flat(latent)
    counts = np.random.default_rng(3).poisson(np.where(np.arange(300) % 4 == 0, 5.0, 0.2))
    figure = plots.latent_figure(coordinates, names, markers={"CD3D": counts, "LYZ": counts * 0})
    axis = next(axis for axis in figure.axes if axis.get_title(loc="left") == "CD3D")
    none, some = axis.collections
    place = {tuple(xy): cell for cell, xy in enumerate(coordinates)}
    below = [place[tuple(xy)] for xy in drawn(none)]
    above = [place[tuple(xy)] for xy in drawn(some)]
    assert sorted(below) == list(np.flatnonzero(counts == 0))
    np.testing.assert_allclose(np.asarray(some.get_array()), np.log1p(counts[above]))
    assert (np.diff(counts[above]) >= 0).all()
    silent = next(axis for axis in figure.axes if axis.get_title(loc="left") == "LYZ")
    assert len(drawn(silent.collections[0])) == 300
    assert {"log(1 + expression)"} == {
        a.get_ylabel() for a in figure.axes if not a.get_title(loc="left")
    }


def test_a_hundred_categories_have_a_legend_and_more_have_a_note(latent):
    coordinates, names = flat(latent)
    labels = {f"{n}": np.array([f"c{i % n}" for i in range(300)]) for n in (20, 30, 101)}
    few, most, many = (
        next(
            axis
            for axis in plots.latent_figure(coordinates, names, categories=labels).axes
            if axis.get_title(loc="left").startswith(n)
        )
        for n in ("20", "30", "101")
    )
    for axis, number in ((few, 20), (most, 30)):
        entries = [text.get_text() for text in axis.get_legend().get_texts()]
        assert entries == [f"c{i}" for i in range(number)]
    assert many.get_legend() is None
    assert many.get_title(loc="left") == "101 (101 categories)"


def boxes(figure) -> tuple[list, list]:
    """What every text and every legend takes of the figure, and the figure itself, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [figure._suptitle]
    for axis in figure.axes:
        texts += [axis._left_title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
    drawn = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    legends = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    return drawn, [legend.get_window_extent(renderer) for legend in legends]


def test_no_legend_is_cut_and_no_panel_covers_another():
    rng = np.random.default_rng(0)
    coordinates = rng.normal(size=(900, 2)) * [3, 1]
    types = np.array([f"CD4-positive, alpha-beta T cell of kind {i}, resting" for i in range(30)])
    figure = plots.latent_figure(
        coordinates,
        ("UMAP 1", "UMAP 2"),
        categories={
            "donor": np.array([f"donor_{i}" for i in range(25)])[np.arange(900) % 25],
            "type": types[np.arange(900) % 30],
            "kit": np.array(["v2", "v3"])[np.arange(900) % 2],
        },
        values={"a long name of a column with numbers in it": rng.normal(size=900)},
        markers={f"GENE{i}": rng.poisson(1.0, 900) for i in range(5)},
        highlights={"donor": np.array([f"donor_{i}" for i in range(25)])[np.arange(900) % 25]},
    )
    texts, legends = boxes(figure)
    for box in [*texts, *legends]:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
    panels = [axis.get_window_extent() for axis in figure.axes]
    areas = [*panels, *legends]
    for number, one in enumerate(areas):
        assert not any(one.padded(-1.0).overlaps(other) for other in areas[number + 1 :])
    squares = [panel for panel in panels if panel.width > 100]
    assert len(squares) == 3 + 1 + 5 + 25
    assert all(square.width == pytest.approx(square.height) for square in squares)
    assert all(axis.get_aspect() == 1.0 for axis in figure.axes if len(axis.get_title(loc="left")))


def test_names_are_on_compact_categories_alone_and_not_on_each_other():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10], [10, 10.01], [5, 5]])
    codes = np.arange(600) % 6
    coordinates = centres[codes] + rng.normal(scale=0.3, size=(600, 2))
    labels = np.array(["a", "b", "c", "d", "e", "unknown"])[codes]
    spread = np.array(["p", "q", "r", "s", "t", "u"])[rng.integers(0, 6, 600)]
    categories = {"type": labels, "batch": spread}
    figure = plots.latent_figure(coordinates, ("x", "y"), categories=categories)
    long = np.array([f"a long name of type {label}" for label in labels])
    at_the_edge = plots.latent_figure(coordinates, ("x", "y"), categories={"type": long})
    boxes(at_the_edge)
    (axis,) = at_the_edge.axes
    assert len(axis.texts) == 6  # of two at one place, one name is above and one below
    for text in axis.texts:
        box, panel = text.get_window_extent(), axis.get_window_extent()
        assert panel.x0 <= box.x0 < box.x1 <= panel.x1
    types, batches = figure.axes
    assert [text.get_text() for text in types.texts] == ["a", "b", "c", "d"]
    for text, centre in zip(types.texts, centres, strict=False):
        np.testing.assert_allclose(text.get_position(), centre, atol=1.0)
    assert list(batches.texts) == []


def test_a_name_beside_its_cells_is_not_on_those_of_others():
    rng = np.random.default_rng(0)
    small, above, below = [5.0, 5.0], [5.0, 5.4], [5.0, 4.6]
    corners = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0], [0.0, 5.0]]

    def heights(*others: list[float]) -> float:
        centres = np.array([small, *others, *corners[: 5 - len(others)]])
        codes = np.arange(600) % len(centres)
        coordinates = centres[codes] + rng.normal(scale=0.05, size=(600, 2))
        names = np.array(["a small one", "v", "w", "x", "y", "z"])[codes]
        (axis,) = plots.latent_figure(coordinates, ("x", "y"), categories={"t": names}).axes
        (text,) = (text for text in axis.texts if text.get_text() == "a small one")
        return float(text.get_position()[1])

    assert heights() > 5.2
    assert heights(above) < 4.8
    assert heights(above, below) == pytest.approx(5, abs=0.1)


def test_a_highlighted_category_lies_on_the_others(latent):
    coordinates, names = flat(latent)
    labels = np.array(["b", "a"])[np.arange(300) % 2]
    figure = plots.latent_figure(coordinates, names, highlights={"batch": labels})
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a (150)", "b (150)"]
    for axis, name, colour in zip(figure.axes, "ab", FEW, strict=False):
        others, own = axis.collections
        np.testing.assert_array_equal(
            sorted(drawn(own)[:, 0]), sorted(coordinates[labels == name, 0])
        )
        assert len(drawn(others)) == 150
        np.testing.assert_allclose(own.get_facecolors()[0, :3], matplotlib.colors.to_rgb(colour))
    many = {"batch": np.arange(300) % 50}
    titles = [
        a.get_title(loc="left")
        for a in plots.latent_figure(coordinates, names, highlights=many).axes
    ]
    assert len(titles) == 48
    assert titles[-1] == "47 (6); 2 more of batch"


def test_values_are_drawn_on_their_own_scale(latent):
    coordinates, names = flat(latent)
    depth = np.arange(300.0)
    depth[7] = np.nan
    figure = plots.latent_figure(coordinates, names, values={"depth": depth})
    none, some = figure.axes[0].collections
    np.testing.assert_array_equal(drawn(none), coordinates[[7]])
    assert sorted(np.asarray(some.get_array())) == sorted(depth[np.isfinite(depth)])


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("B cell", "B cell"),
        ("two\nlines", "two lines"),
        ("CD4-positive, alpha-beta memory T cell", "CD4-positive, a… memory T cell"),
        ("x" * 31, "x" * 15 + "…" + "x" * 14),
    ],
)
def test_long_names_lose_their_middle(name, short):
    assert shortened_name(name) == short
    assert len(short) <= 30


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
    np.testing.assert_array_equal(coordinates, flat(latent)[0])
    pixels = matplotlib.image.imread(tmp_path / "a.png")
    assert pixels.shape[1] <= 700  # 14 inches
    assert 0.02 < (pixels[..., :3] < 0.95).any(axis=2).mean() < 0.6
    plots.plot_latent(latent, tmp_path / "b.png", **arguments, method="pca", dpi=50)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_latent_without_colourings_is_drawn_too(latent, tmp_path):
    plots.plot_latent(latent, tmp_path / "plain.png", method="pca", dpi=40)
    pixels = matplotlib.image.imread(tmp_path / "plain.png")
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
