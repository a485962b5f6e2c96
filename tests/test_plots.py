"""Pictures: what they show is checked in the figures, that they are written in the files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from fastvae import _projection, plots
from fastvae._colours import FEW, GREY, MANY, category_codes, category_colours
from fastvae.errors import InputError

EPOCHS = 40


@pytest.fixture(scope="module")
def history() -> dict[str, list[float]]:
    """Losses that start 1,000 times above where they end; validation is best at epoch 31."""
    epoch = np.arange(1, EPOCHS + 1)
    loss = 500 + 100 * np.exp(-epoch / 8) + np.where(epoch < 4, 5e5 / epoch, 0)
    return {
        "epoch": list(epoch.astype(float)),
        "train_elbo": list(loss),
        "train_reconstruction_loss": list(loss - 15),
        "train_kl_local": list(15 + 0.1 * epoch),
        "validation_elbo": list(loss + 5 + 0.02 * (epoch - 31.0) ** 2 - (epoch == 31)),
        "validation_reconstruction_loss": list(loss - 9),
        "validation_kl_local": list(14 + 0.1 * epoch),
    }


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 5, (4, 6))
    return centres[np.arange(300) % 4] + rng.normal(size=(300, 6))


def curve(axis, label: str) -> np.ndarray:
    (line,) = (line for line in axis.lines if line.get_label() == label)
    return np.asarray(line.get_ydata())


def test_history_figure_shows_the_numbers(history):
    axes = plots.history_figure(history).axes
    names = ["elbo", "reconstruction_loss", "kl_local"]
    assert [axis.get_title() for axis in axes] == [
        "Negative ELBO",
        "Reconstruction loss",
        "KL divergence",
    ]
    for axis, name in zip(axes, names, strict=True):
        np.testing.assert_array_equal(curve(axis, "training"), history[f"train_{name}"])
        np.testing.assert_array_equal(curve(axis, "validation"), history[f"validation_{name}"])
        assert axis.get_ylabel() == "nats per cell"


def test_history_figure_marks_the_best_validation_epoch(history):
    axes = plots.history_figure(history).axes
    assert history["validation_elbo"].index(min(history["validation_elbo"])) == 30
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels[-1] == f"best validation: {history['validation_elbo'][30]:,.1f} (epoch 31)"
    for axis in axes:
        assert any(np.array_equal(line.get_xdata(), [31, 31]) for line in axis.lines)


def test_huge_first_epochs_do_not_flatten_the_rest(history):
    axes = plots.history_figure(history).axes
    settled = np.array(history["train_elbo"][4:])
    low, high = axes[0].get_ylim()
    assert low < settled.min() < settled.max() < high
    assert settled.max() - settled.min() > 0.25 * (high - low)
    assert "out of the frame" in axes[0].get_xlabel()
    low, high = axes[2].get_ylim()  # the KL has no such start and is shown whole
    assert low < 14.1
    assert high > 19
    assert axes[2].get_xlabel() == "epoch"


@pytest.mark.parametrize(
    ("curves", "limits", "cut"),
    [
        ([np.array([10.0, 2.0, 1.0])], (0.55, 10.45), False),
        ([np.array([1e9, *range(10, 0, -1)])], (0.2, 17.8), True),
        ([np.array([12.0, *range(10, 0, -1)])], (0.45, 12.55), False),
        ([np.array([np.nan, np.inf])], None, False),
        ([], None, False),
    ],
)
def test_y_limits(curves, limits, cut):
    found, hidden = plots.y_limits(curves)
    assert hidden is cut
    if limits is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, limits)


def test_constant_curve_has_room():
    (low, high), cut = plots.y_limits([np.full(6, 3.0)])
    assert low < 3 < high
    assert not cut


def test_history_without_validation_or_with_gaps(history):
    training = {name: values for name, values in history.items() if "validation" not in name}
    axes = plots.history_figure(training).axes
    assert next(line.get_label() for line in axes[1].lines) == "training"
    labels = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert labels[1].startswith("best training: ")
    assert labels[1].endswith("(epoch 40)")
    gaps = {**history, "validation_elbo": [np.nan] * 39 + [4.0]}
    labels = plots.history_figure(gaps).axes[0].get_legend().get_texts()
    assert labels[-1].get_text() == "best validation: 4.0 (epoch 40)"
    nothing = {**training, "train_elbo": [np.nan] * EPOCHS}
    assert len(plots.history_figure(nothing).axes) == 3


def test_rows_and_columns_give_the_same_figure(history):
    rows = [
        dict(zip(history, values, strict=True)) for values in zip(*history.values(), strict=True)
    ]
    first, second = plots.history_figure(history), plots.history_figure(rows)
    for one, other in zip(first.axes, second.axes, strict=True):
        np.testing.assert_array_equal(curve(one, "validation"), curve(other, "validation"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({}, "needs the columns epoch and train_elbo.*it has none"),
        ({"epoch": [1.0]}, "it has epoch"),
        ({"epoch": [], "train_elbo": []}, "no epochs; train first"),
        ([], "it has none"),
        ({"epoch": [1.0, 2.0], "train_elbo": [3.0]}, r"different lengths: \[1, 2\]"),
    ],
)
def test_bad_history(bad, message):
    with pytest.raises(InputError, match=message):
        plots.history_figure(bad)


def test_written_history_is_a_picture_of_the_asked_size(history, tmp_path):
    target = tmp_path / "loss.png"
    target.write_text("old")
    plots.plot_history(history, target, dpi=60)
    pixels = matplotlib.image.imread(target)
    assert pixels.shape[:2] == (228, 756)  # 3.8 x 12.6 inches
    assert 0.02 < (pixels[..., :3] < 0.95).any(axis=2).mean() < 0.5  # drawn on, and not all over
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_vector_formats(history, tmp_path, kind):
    plots.plot_history(history, tmp_path / f"loss.{kind}")
    start = (tmp_path / f"loss.{kind}").read_bytes()[:5]
    assert start == {"pdf": b"%PDF-", "svg": b"<?xml"}[kind]


def test_bad_targets(history, tmp_path):
    with pytest.raises(InputError, match=r"\.xyz cannot be written; name it \.png"):
        plots.plot_history(history, tmp_path / "loss.xyz")
    with pytest.raises(InputError, match="does not exist; create it first"):
        plots.plot_history(history, tmp_path / "none" / "loss.png")
    assert list(tmp_path.iterdir()) == []


def test_principal_components_agree_with_the_svd(latent):
    coordinates, names = _projection.project(latent, method="pca")
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
    coordinates, _ = _projection.project(latent)  # auto: nothing to reduce, so never UMAP
    assert coordinates.shape == (40, 2)
    spread = ((coordinates - coordinates.mean(axis=0)) ** 2).sum()
    assert spread == pytest.approx(((latent - latent.mean(axis=0)) ** 2).sum())
    if n_latent == 1:
        assert (coordinates[:, 1] == 0).all()


@pytest.mark.parametrize("n_cells", [1, 2])
def test_identical_or_single_cells_have_coordinates(n_cells):
    coordinates, names = _projection.project(np.ones((n_cells, 5)))
    np.testing.assert_array_equal(coordinates, np.zeros((n_cells, 2)))
    assert names == ("PC 1 (0% of variance)", "PC 2 (0% of variance)")


@pytest.mark.parametrize(
    ("bad", "arguments", "message"),
    [
        (np.zeros(5), {}, r"shape \(5,\); expected \(cells, dimensions\)"),
        (np.zeros((0, 5)), {}, "not empty"),
        (np.array([[0.0], [np.nan]]), {}, "cell 1 is not finite"),
        (np.zeros((5, 3)), {"method": "tsne"}, "method is 'tsne'; give"),
    ],
)
def test_bad_latent(bad, arguments, message):
    with pytest.raises(InputError, match=message):
        _projection.project(bad, **arguments)


def test_umap_that_is_not_there(monkeypatch, latent):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'UMAP is not installed; pip install "fastvae\[umap\]"'):
        _projection.project(latent, method="umap")
    _, names = _projection.project(latent)
    assert names[0].startswith("PC 1")


def test_umap_is_used_where_it_serves(monkeypatch, latent):
    asked = []

    def recorded(points: np.ndarray, seed: int) -> np.ndarray:
        asked.append((points.shape, seed))
        return points[:, :2]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(_projection, "umap_coordinates", recorded)
    assert _projection.project(latent, seed=3)[1] == ("UMAP 1", "UMAP 2")
    assert asked == [((300, 6), 3)]
    for small in (latent[:14], latent[:, :2]):
        assert _projection.project(small)[1][0].startswith("PC 1")
    with pytest.raises(InputError, match="UMAP needs 15 cells or more, there are 14"):
        _projection.project(latent[:14], method="umap")
    monkeypatch.setattr(_projection, "UMAP_CELLS", (15, 299))
    assert _projection.project(latent)[1][0].startswith("PC 1")


def test_umap_is_silent_repeatable_and_keeps_groups_apart(latent):
    pytest.importorskip("umap", reason="umap-learn is an extra")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = _projection.umap_coordinates(latent, seed=1)
        again = _projection.umap_coordinates(latent, seed=1)
    np.testing.assert_array_equal(first, again)
    distance = np.linalg.norm(first[:, None] - first[None], axis=2) + np.eye(300) * 1e9
    assert (distance.argmin(axis=1) % 4 == np.arange(300) % 4).mean() > 0.99


def drawn(collection) -> np.ndarray:
    return np.asarray(collection.get_offsets())


def test_category_panels_colour_each_cell_by_its_label(latent):
    coordinates, names = _projection.project(latent, method="pca")
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
    coordinates, names = _projection.project(latent, method="pca")
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
    coordinates, names = _projection.project(latent, method="pca")
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
    np.testing.assert_array_equal(coordinates, _projection.project(latent, method="pca")[0])
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


def test_category_codes_are_in_natural_order_with_no_category_last():
    codes, names = category_codes(
        ["batch_10", None, "batch_2", float("nan"), "Unassigned", "batch_2"]
    )
    assert names == ["batch_2", "batch_10", "Unassigned", "unknown"]
    np.testing.assert_array_equal(codes, [1, 3, 0, 3, 2, 0])
    assert category_colours(names) == [FEW[0], FEW[1], GREY, GREY]
    assert category_colours([f"c{i}" for i in range(20)]) == MANY
    assert category_colours([f"c{i}" for i in range(21)]) is None


@pytest.mark.parametrize("palette", [FEW, MANY])
def test_palettes_are_apart_for_colour_blind_readers(palette):
    """Smallest Oklab distance (x 100) of two colours, also through Machado's 2009 simulations."""
    views = {
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
    to_cone = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    rgb = matplotlib.colors.to_rgba_array([*palette, GREY])[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for name, matrix in views.items():
        seen = np.clip(linear @ np.transpose(matrix), 0, 1)
        lab = 100 * np.cbrt(seen @ np.transpose(to_cone)) @ np.transpose(to_lab)
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1e9 * np.eye(len(lab))
        assert distance.min() > 7.5, name


def test_matplotlib_is_loaded_on_use_and_pyplot_never(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from fastvae import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.plot_history({{'epoch': [1], 'train_elbo': [2]}}, {str(tmp_path / 'a.png')!r})\n"
        f"plots.plot_latent(np.eye(5), {str(tmp_path / 'b.png')!r}, method='pca')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}
