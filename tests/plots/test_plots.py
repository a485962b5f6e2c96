"""Loss curves: what they show is checked in the figure, that they are written in the files."""

from __future__ import annotations

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from fastvae.errors import InputError
from fastvae.plots import figures as plots

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
