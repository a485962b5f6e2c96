"""``fastvae plot``, and the pictures of ``fastvae train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from command_line import run
from small_models import small_data

from fastvae import Model
from fastvae.cli import run_folder
from fastvae.plots import figures, projection
from fastvae.report import pictures

TRAIN = ["--max-epochs", 1, "--n-latent", 3, "--n-hidden", 8, "--batch-key", "batch", "-q"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    adata = small_data()
    adata.var_names = ["CD3D", "MS4A1", *adata.var_names[2:]]
    adata.obs["name"] = [f"cell {number}" for number in range(adata.n_obs)]
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("train", data, "-o", folder, *TRAIN, "--color", "cell_type", "--color", "CD3D")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the last picture was drawn from."""
    seen: dict[str, Any] = {}
    draw = figures.latent_figure

    def recorded(coordinates: np.ndarray, names: Any, **arguments: Any) -> Any:
        seen.update(arguments, coordinates=coordinates, names=names)
        return draw(coordinates, names, **arguments)

    monkeypatch.setattr(figures, "latent_figure", recorded)
    return seen


def test_train_draws_its_latent_space(data: Path, tmp_path: Path, drawn: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    colours = ["--color", "cell_type", "--color", "CD3D", "--color", "library"]
    shown = run("train", data, "-o", folder, *TRAIN, *colours).stdout
    assert f"{folder / 'latent.png'}" in shown
    assert (folder / "latent.png").read_bytes()[:4] == b"\x89PNG"
    saved = anndata.read_h5ad(folder / "latent.h5ad")
    latent = saved.obsm["X_fastvae"]
    np.testing.assert_array_equal(saved.obsm["X_umap"], projection.umap_of(latent).astype("f4"))
    np.testing.assert_array_equal(drawn["coordinates"], saved.obsm["X_umap"])
    assert list(drawn["categories"]) == ["batch", "cell_type"]
    assert list(drawn["highlights"]) == ["batch"]
    assert list(drawn["values"]) == ["library"]
    counts = anndata.read_h5ad(data).X.toarray()
    expected = 1e4 * counts[:, 0] / counts.sum(axis=1)
    np.testing.assert_allclose(drawn["markers"]["CD3D"], expected, rtol=1e-6)
    assert drawn["title"] == "Latent space of 120 cells (UMAP)"


def test_no_plots_are_drawn_unasked(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("train", data, "-o", folder, *TRAIN, "--no-plots")
    assert not list(folder.glob("*.png"))
    assert "X_umap" not in anndata.read_h5ad(folder / "latent.h5ad").obsm


def test_map_draws_too(data: Path, trained: Path, tmp_path: Path) -> None:
    query = anndata.read_h5ad(data)[:60].copy()
    query.obs["batch"] = "new"
    query.write_h5ad(tmp_path / "query.h5ad")
    words = ["map", trained, tmp_path / "query.h5ad", "--batch-key", "batch", "-q"]
    run(*words, "-o", tmp_path / "a", "--max-epochs", 1, "--color", "cell_type")
    assert (tmp_path / "a" / "latent.png").is_file()
    run(*words, "-o", tmp_path / "b", "--max-epochs", 1, "--no-plots")
    assert not list((tmp_path / "b").glob("*.png"))
    said = run(*words, "-o", tmp_path / "c", "--max-epochs", 1, "--color", "x", code=2).stderr
    assert "neither a column of obs nor a gene" in said


def test_a_long_wait_is_announced(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "MANY_CELLS", 100)
    loud = [word for word in TRAIN if word != "-q"]
    said = run("train", data, "-o", tmp_path / "a", *loud).stderr
    assert said.endswith("computing the latent space and its UMAP\n")
    assert "UMAP" not in run("train", data, "-o", tmp_path / "b", *TRAIN).stderr


def test_an_unknown_colour_is_refused_before_training(data: Path, tmp_path: Path) -> None:
    said = run("train", data, "-o", tmp_path / "r", *TRAIN, "--color", "celltype", code=2).stderr
    assert "--color celltype is neither a column of obs nor a gene of the model" in said
    assert "did you mean 'cell_type'?" in said
    assert not (tmp_path / "r").exists()


def test_plot_draws_the_umap_of_the_run(
    trained: Path, tmp_path: Path, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the UMAP is in the file")

    monkeypatch.setattr(projection, "umap_coordinates", never)
    shown = run("plot", trained, "-o", tmp_path / "a.pdf", "--highlight", "cell_type").stdout
    assert shown == f"{tmp_path / 'a.pdf'}: 120 cells (UMAP)\n"
    assert (tmp_path / "a.pdf").read_bytes()[:5] == b"%PDF-"
    assert list(drawn["highlights"]) == ["batch", "cell_type"]
    run("plot", trained, "-o", tmp_path / "b.png", "--method", "pca", "--color", "cell_type")
    assert drawn["names"][0].startswith("PC 1")
    assert drawn["title"] == "Latent space of 120 cells (principal components)"


def test_plot_takes_genes_from_the_data(
    data: Path, trained: Path, tmp_path: Path, drawn: dict[str, Any]
) -> None:
    said = run("plot", trained, "-o", tmp_path / "a.png", "--color", "MS4A1", code=2).stderr
    assert f"name the data too: fastvae plot {trained} DATA" in said
    run("plot", trained, data, "-o", tmp_path / "a.png", "--color", "MS4A1")
    assert list(drawn["markers"]) == ["MS4A1"]
    umap = drawn["coordinates"]
    few = anndata.read_h5ad(data)[:40].copy()
    few.write_h5ad(tmp_path / "few.h5ad")
    run("plot", trained, tmp_path / "few.h5ad", "-o", tmp_path / "b.png")
    assert drawn["coordinates"].shape == (40, 2)
    assert not np.array_equal(drawn["coordinates"], umap[:40])


@pytest.mark.filterwarnings("always:the latent space is drawn as principal components")
def test_principal_components_are_announced_once(
    trained: Path, tmp_path: Path, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pictures, "read_latent", without_umap(pictures.read_latent))
    said = run("plot", trained, "-o", tmp_path / "a.png").stderr
    assert said.count("drawn as principal components, not as UMAP: UMAP is not installed") == 1
    assert said.count("\n") == 1
    assert "(principal components: UMAP is not installed" in drawn["title"]


def without_umap(read: Any) -> Any:
    def reading(folder: Path) -> Any:
        saved = read(folder)
        return pictures.SavedLatent(saved.obs, saved.latent, None)

    return reading


def test_nothing_is_overwritten_unasked(trained: Path, tmp_path: Path) -> None:
    before = (trained / "latent.png").read_bytes()
    said = run("plot", trained, code=2).stderr
    assert f"output file {trained / 'latent.png'} already exists" in said
    assert (trained / "latent.png").read_bytes() == before
    run("plot", trained, "--overwrite", "--dpi", 40)
    assert (trained / "latent.png").read_bytes() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--color", "name"], "has different values"),
        (["--highlight", "celltype"], "--highlight celltype is not a column of obs"),
        (["--method", "tsne"], "--method tsne is not known; choose one of"),
        (["--dpi", 1], "dpi must be a whole number of at least 10"),
        (["-o", "a.txt"], "pictures of the kind .txt cannot be written"),
    ],
)
def test_refusals_leave_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "MOST_CATEGORIES", 100)
    said = run("plot", trained, "-o", "a.png", *options, code=2).stderr
    assert message in said.replace("120 different", "different")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_latent_space(trained: Path, tmp_path: Path) -> None:
    Model.load(trained).save(tmp_path / "bare")
    said = run("plot", tmp_path / "bare", code=2).stderr
    assert f"{tmp_path / 'bare' / 'latent.h5ad'} is missing; write it with fastvae embed" in said


def test_a_latent_space_of_other_cells_is_refused(trained: Path, tmp_path: Path) -> None:
    import h5py

    Model.load(trained).save(tmp_path / "odd")
    (tmp_path / "odd" / "latent.h5ad").write_bytes((trained / "latent.h5ad").read_bytes())
    with h5py.File(tmp_path / "odd" / "latent.h5ad", "a") as file:
        del file["obsm/X_fastvae"]
        file["obsm/X_fastvae"] = np.zeros((7, 3), dtype=np.float32)
    said = run("plot", tmp_path / "odd", code=2).stderr
    assert 'obsm["X_fastvae"] does not fit its 120 cells' in said
