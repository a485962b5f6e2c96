"""The embedded blood cells: real counts, labelled, and behaving as blood cells do."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.resources import files

import anndata
import numpy as np
import pytest
from scipy import sparse

import fastvae.datasets._pbmc as home
from fastvae.datasets import pbmc
from fastvae.errors import InputError

BATCHES = {"pbmc3k_v1": 2700, "pbmc5k_v3": 200, "pbmc10k_v3": 200}
MARKER_OF = {  # cell type -> a gene, and how many times the level of any other type it has
    "B": ("MS4A1", 10),
    "CD4 T": ("IL7R", 1.1),  # CD8 T cells have it too
    "CD8 T": ("CD8A", 5),
    "NK": ("GNLY", 5),
    "CD14+ Mono": ("CD14", 5),
    "FCGR3A+ Mono": ("MS4A7", 3),
    "DC": ("FCER1A", 10),
    "Platelet": ("PPBP", 10),
}


@pytest.fixture(scope="module")
def cells() -> anndata.AnnData:
    return pbmc()


def expression(cells: anndata.AnnData, gene: str) -> np.ndarray:
    return cells[:, gene].X.toarray().ravel()


def test_counts_are_counts_as_measured(cells):
    counts = cells.X
    assert sparse.issparse(counts)
    assert counts.format == "csr"
    assert counts.dtype == np.float32
    assert counts.shape == (3100, 2000)
    assert counts.data.min() == 1
    np.testing.assert_array_equal(counts.data, np.round(counts.data))
    assert counts.sum() == 2_150_316
    assert counts.nnz == 607_438
    # Single molecules are the commonest value of UMI counts; a normalised matrix has no such mode.
    assert 0.5 < (counts.data == 1).mean() < 0.7
    totals = np.asarray(counts.sum(axis=1)).ravel()
    assert totals.min() > 0
    assert (totals <= cells.obs["total_umi_all_genes"]).all()


def test_three_batches_of_two_chemistries(cells):
    assert cells.obs["batch"].value_counts().to_dict() == BATCHES
    depth = cells.obs.groupby("batch", observed=True)["total_umi_all_genes"].median()
    assert depth["pbmc3k_v1"] == 2197  # the median that is known of PBMC 3k
    assert (depth[["pbmc5k_v3", "pbmc10k_v3"]] > 1.7 * depth["pbmc3k_v1"]).all()
    assert cells.obs_names.is_unique
    assert cells.var_names.is_unique
    assert cells.var["gene_ids"].str.fullmatch(r"ENSG\d{11}").all()


@pytest.mark.parametrize("cell_type", MARKER_OF)
def test_markers_mark_their_type_in_every_batch(cells, cell_type):
    gene, times = MARKER_OF[cell_type]
    of_type = (cells.obs["cell_type"] == cell_type).to_numpy()
    known = (cells.obs["cell_type"] != "unknown").to_numpy()
    level = expression(cells, gene) / cells.obs["total_umi_all_genes"].to_numpy() * 1e4
    for batch in BATCHES:
        here = known & (cells.obs["batch"] == batch).to_numpy()
        if (here & of_type).sum() < 10:
            continue  # the gates leave too few of this type
        others = {
            name: level[here & (cells.obs["cell_type"] == name).to_numpy()].mean()
            for name in set(cells.obs["cell_type"][here]) - {cell_type}
        }
        assert level[here & of_type].mean() > times * max(others.values()), (batch, others)


def test_b_and_t_cells_are_nearly_disjoint(cells):
    # Two molecules of each: a single one may have drifted over from a broken cell.
    b_cell, t_cell = expression(cells, "MS4A1") >= 2, expression(cells, "CD3D") >= 2
    by_chance = b_cell.mean() * t_cell.mean() * cells.n_obs
    assert by_chance > 80
    assert (b_cell & t_cell).sum() < 0.12 * by_chance


def test_labels_say_where_they_come_from(cells):
    obs = cells.obs
    assert (obs["label_source"] == "none").equals(obs["cell_type"] == "unknown")
    clustered = obs["label_source"] == "published clusters"
    assert set(obs["batch"][clustered]) == {"pbmc3k_v1"}
    assert clustered.sum() == 2638
    assert (obs["cluster_label"] != "unassigned").equals(clustered)
    gated = obs["label_source"] == "surface protein"
    assert set(obs["batch"][gated]) == {"pbmc5k_v3", "pbmc10k_v3"}
    assert gated.sum() == 370
    assert set(obs["cell_type"]) == {*MARKER_OF, "unknown"}


def test_the_usual_markers_are_there(cells):
    wanted = (
        "CD3D CD3E IL7R CCR7 CD4 CD8A CD8B MS4A1 CD79A CD79B LYZ CD14 S100A8 FCGR3A MS4A7 NKG7 "
        "GNLY GZMB KLRD1 FCER1A CST3 PPBP PF4 HLA-DRA"
    )
    assert set(wanted.split()) <= set(cells.var_names)


def test_file_is_small_documented_and_quick_to_load():
    folder = files("fastvae.datasets")
    assert len(folder.joinpath("pbmc.h5ad").read_bytes()) < 1.5e6
    text = folder.joinpath("LICENSES.md").read_text(encoding="utf-8")
    for source in ("desc==2.1.1", "scvi_tools==1.4.2", "clustifyrdata"):
        assert source in text
    start = time.perf_counter()
    pbmc()
    assert time.perf_counter() - start < 1.0


def test_each_call_returns_its_own_data(cells):
    other = pbmc()
    other.X.data[:] = 0
    other.obs["batch"] = "one"
    assert pbmc().X.sum() == cells.X.sum() > 0


def test_missing_file_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(home, "DATA_FILE", tmp_path / "pbmc.h5ad")
    with pytest.raises(InputError, match=r"pbmc\.h5ad is missing; reinstall fastvae"):
        pbmc()


def test_importing_the_data_sets_stays_light():
    code = (
        "import sys, fastvae\n"
        "fastvae.datasets, fastvae.integrations\n"
        "print({'anndata', 'pandas', 'scipy', 'h5py', 'torch', 'matplotlib'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
