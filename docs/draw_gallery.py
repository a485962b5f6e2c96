"""Draw the pictures of the gallery.

``python docs/draw_gallery.py`` writes ``images/gallery/*.png``. It trains on the blood cells that
come with the package as `fastvae demo` does, about two minutes on 2 cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fastvae import Model, datasets, plots
from fastvae.cli.demo import DEMO_FIT, MARKERS
from fastvae.report.observed import scaled_expression
from fastvae.report.pictures import PictureOptions, draw_joint

FOLDER = Path(__file__).resolve().parent / "images" / "gallery"
DPI = 72
"""Small: the whole gallery stays below 500 kB."""


def draw(folder: Path) -> None:
    """Train, and write every picture to `folder`."""
    adata = datasets.pbmc()
    model = Model(adata, batch_key="batch").fit(**DEMO_FIT, seed=0)
    latent = np.asarray(model.get_latent_representation())
    batch, label = adata.obs["batch"], adata.obs["cell_type"]
    folder.mkdir(parents=True, exist_ok=True)
    plots.plot_history(model.history, folder / "history.png", dpi=DPI)
    plots.plot_latent(
        latent,
        folder / "latent.png",
        categories={"batch": batch, "cell_type": label},
        highlights={"batch": batch},
        dpi=DPI,
    )
    markers = scaled_expression(model, list(MARKERS[:4]))
    plots.plot_latent(latent, folder / "markers.png", markers=markers, dpi=DPI)
    known = [name for name in label.cat.categories if name != "unknown"]
    table = model.differential_expression(groupby="cell_type", group1=known)
    plots.plot_dots(table, folder / "dots.png", dpi=DPI)
    first = table["comparison"].isin(table["comparison"].unique()[:3])
    plots.plot_volcano(table[first], folder / "volcano.png", dpi=DPI)
    draw_query(folder / "joint.png")


def draw_query(picture: Path) -> None:
    """Map one batch onto a model of the others, as ``fastvae map --labels`` does."""
    adata = datasets.pbmc()
    query = (adata.obs["batch"] == "pbmc10k_v3").to_numpy()
    known, new = adata[~query].copy(), adata[query].copy()
    reference = Model(known, batch_key="batch").fit(**DEMO_FIT, seed=0)
    mapped = reference.map_query(new, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        joint, large = Path(folder) / "joint.h5ad", Path(folder) / "joint.png"
        mapped.write_joint_latent(joint, reference, "cell_type", max_uncertainty=0.3)
        draw_joint(joint, large, PictureOptions(), "batch")
        with Image.open(large) as drawn:
            drawn.thumbnail((900, 900))
            drawn.convert("RGB").quantize(256).save(picture, optimize=True)


if __name__ == "__main__":
    draw(FOLDER)
