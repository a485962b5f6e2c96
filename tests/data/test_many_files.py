"""Several files as one data set, from the command line too."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from count_data import annotated, dense_counts, write_mtx_folder
from typer.testing import CliRunner

from fastvae import Model
from fastvae.cli import app
from fastvae.data.opening import open_data
from fastvae.data.request import Source, Wanted
from fastvae.errors import InputError


def _adata(seed: int, genes: list[int], batches: list[str]) -> anndata.AnnData:
    adata = annotated(sp.csr_matrix(dense_counts(seed=seed)))
    adata.obs["batch"] = pd.Categorical([batches[i % len(batches)] for i in range(40)])
    adata.obs_names = [f"file{seed}-{i}" for i in range(40)]
    return adata[:, genes].copy()


@pytest.fixture(name="files")
def fixture_files(tmp_path: Path) -> list[Path]:
    """Genes in another order and number in each; the batch column has another name in one."""
    first = _adata(1, list(range(11)), ["b", "a"])
    second = _adata(2, [12, 10, 8, 6, 4, 2, 0, 1, 3], ["c", "a"])
    third = _adata(3, list(range(12, -1, -1)), ["a", "d"])
    third.obs = third.obs.rename(columns={"batch": "sample"})
    paths = [tmp_path / name for name in ("one.h5ad", "two.h5ad", "three.h5ad")]
    for path, adata in zip(paths, (first, second, third), strict=True):
        adata.write_h5ad(path)
    return paths


WANTED = Wanted(batch_key="batch", batch_key_of={"three.h5ad": "sample"})


@pytest.mark.parametrize("residence", ["host", "disk"])
@pytest.mark.parametrize("genes", [None, ("G4", "G0", "G10", "G3")])
def test_genes_and_categories_are_matched(
    files: list[Path], residence: str, genes: tuple[str, ...] | None
) -> None:
    store, frames = open_data(
        files, Wanted(**{**vars(WANTED), "gene_names": genes}), Source(residence)
    )
    assert store.residence == residence
    expected = list(genes or ["G0", "G1", "G2", "G3", "G4", "G6", "G8", "G10"])
    assert list(store.gene_names) == expected
    assert list(frames.var.index) == expected
    objects = [anndata.read_h5ad(path) for path in files]
    counts = np.concatenate([adata[:, expected].X.toarray() for adata in objects])
    crow, col, values = store.rows(np.arange(120))
    got = sp.csr_matrix((values, col, crow), shape=counts.shape)
    assert got.has_canonical_format
    np.testing.assert_array_equal(got.toarray(), counts)
    assert store.batch_categories == ("a", "b", "c", "d")
    names = [str(b) for adata in objects for b in adata.obs.get("batch", adata.obs.get("sample"))]
    assert [store.batch_categories[code] for code in store.batch_codes] == names
    assert list(frames.obs["batch"]) == names
    assert list(frames.obs["file"].unique()) == ["one.h5ad", "two.h5ad", "three.h5ad"]
    assert list(store.cell_names) == [n for adata in objects for n in adata.obs_names]
    logs = np.log(counts.sum(1)[np.array(names) == "d"])
    assert store.log_library_mean[3] == pytest.approx(logs.mean(), rel=1e-6)


def test_any_kind_of_file_can_be_among_them(files: list[Path], tmp_path: Path) -> None:
    folder = write_mtx_folder(tmp_path / "mtx", dense_counts(seed=5))
    store, _ = open_data([files[0], folder], Wanted(), Source())
    assert (store.n_cells, store.n_genes) == (80, 11)
    crow, col, values = store.rows(np.arange(40, 80))
    got = sp.csr_matrix((values, col, crow), shape=(40, 11)).toarray()
    np.testing.assert_array_equal(got, dense_counts(seed=5)[:, :11])
    with pytest.raises(InputError, match=r"mtx cannot be streamed.*fastvae convert"):
        open_data([files[0], folder], Wanted(), Source("disk"))


def test_a_model_of_several_files(files: list[Path], tmp_path: Path) -> None:
    model = Model(
        files, batch_key="batch", batch_key_of=WANTED.batch_key_of, n_hidden=8, n_latent=2
    )
    model.fit(2, seed=0, progress=False)
    whole = model.get_latent_representation()
    assert whole.shape == (120, 2)
    second = model.get_latent_representation(files[1])
    np.testing.assert_allclose(second, whole[40:80], atol=1e-5)
    model.write_latent(tmp_path / "latent.h5ad")
    latent = anndata.read_h5ad(tmp_path / "latent.h5ad")
    assert list(latent.obs["file"].unique()) == ["one.h5ad", "two.h5ad", "three.h5ad"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_key_of": {}}, r"three\.h5ad: obs has no column 'batch'"),
        ({"batch_key_of": {"four.h5ad": "x"}}, r"'four\.h5ad', which is none of the files"),
        ({"gene_names": ("G0", "G5", "G12")}, r"one\.h5ad lacks 1 of the 3 genes.*'G12'"),
        ({"gene_names": ("G0", "G0")}, r"1 different genes are asked for by 2 names"),
        ({"batch_categories": ("a", "b", "c")}, r"three\.h5ad: obs\['sample'\].*'d'"),
    ],
)
def test_files_that_do_not_fit(files: list[Path], change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(files, Wanted(**{**vars(WANTED), **change}), Source("disk"))


def test_files_with_other_genes_altogether(files: list[Path]) -> None:
    adata = _adata(4, list(range(13)), ["a"])
    adata.var_names = adata.var["gene_ids"]
    path = files[0].with_name("ids.h5ad")
    adata.write_h5ad(path)
    store, _ = open_data([*files, path], WANTED, Source())  # by the ids that all have in var
    assert list(store.gene_names) == ["G0", "G1", "G2", "G3", "G4", "G6", "G8", "G10"]
    del adata.var["gene_ids"]
    path = files[0].with_name("only_ids.h5ad")
    adata.write_h5ad(path)
    with pytest.raises(InputError, match=r"only_ids\.h5ad has 0 genes in common.*'ENSG0000'"):
        open_data([*files, path], WANTED, Source())


def test_command_line(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("# kept\nG0\nG2\n\nG4\n")
    arguments = ["train", *map(str, files), "-o", str(tmp_path / "run"), "--max-epochs", "1"]
    arguments += ["--batch-key", "batch", "--batch-key-of", "three.h5ad=sample"]
    arguments += ["--genes", str(tmp_path / "genes.txt"), "--residence", "disk"]
    arguments += ["--memory-limit", "1GB", "--n-hidden", "8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "counts on disk: as asked for" in result.output
    model = Model.load(tmp_path / "run")
    assert model.gene_names == ["G0", "G2", "G4"]
    assert model.batch_categories == ["a", "b", "c", "d"]
    latent = anndata.read_h5ad(tmp_path / "run" / "latent.h5ad")
    assert latent.shape == (120, 3)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--genes", "none.txt", "cannot be read as a list of genes"),
        ("--genes", "twice.txt", "more than once: 'G0'"),
        ("--genes", "one.txt", "names 1 genes; at least two"),
        ("--batch-key-of", "sample", "'sample' is not of the form FILE=COLUMN"),
        ("--memory-limit", "lots", "--memory-limit must be a size such as 500MB"),
        ("--residence", "gpu", "--residence gpu is not known"),
    ],
)
def test_options_that_make_no_sense(
    files: list[Path], tmp_path: Path, option: str, value: str, message: str
) -> None:
    (tmp_path / "twice.txt").write_text("G0\nG0\nG1\n")
    (tmp_path / "one.txt").write_text("G0\n")
    value = str(tmp_path / value) if option == "--genes" else value
    result = CliRunner().invoke(
        app, ["train", str(files[0]), "-o", str(tmp_path / "run"), option, value]
    )
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run").exists()
