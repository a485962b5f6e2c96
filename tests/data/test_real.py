"""Real data sets in full, where the variable FASTVAE_TEST_DATA names a folder that holds them."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastvae.data import CountStore, read
from fastvae.errors import InputError

FOLDER = os.environ.get("FASTVAE_TEST_DATA", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="FASTVAE_TEST_DATA names no folder")
ROOT = Path(FOLDER)
PBMC = ROOT / "10x" / "pbmc3k_300"


def _sources() -> list[Path]:
    if not FOLDER:
        return []
    folders = {path.parent for path in ROOT.rglob("matrix.mtx*")}
    return sorted([*ROOT.rglob("*.h5ad"), *ROOT.rglob("*.h5"), *folders])


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_is_read_or_refused_with_a_reason(path: Path) -> None:
    if path.name == "multiple_genomes.h5":
        with pytest.raises(InputError, match="pass genome="):
            read(path)
        return
    adata = read(path)
    assert adata.X.nnz > 0
    assert adata.var_names.is_unique
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    if path.suffix == ".h5ad":
        with h5py.File(path) as file:
            assert adata.shape == (len(file["X/indptr"]) - 1, file["X"].attrs["shape"][1])
            np.testing.assert_array_equal(adata.X.data, file["X/data"][:])
            np.testing.assert_array_equal(adata.X.indices, file["X/indices"][:])
    store = CountStore.from_anndata(adata, batch_key="batch" if "batch" in adata.obs else None)
    assert store.counts is adata.X
    assert np.isfinite(store.log_library_mean).all()


def test_three_forms_of_one_run_read_alike() -> None:
    forms = [
        read(PBMC / "v2" / "filtered_gene_bc_matrices" / "hg19"),
        read(PBMC / "v3" / "filtered_feature_bc_matrix"),
        read(PBMC / "v3" / "filtered_feature_bc_matrix.h5"),
    ]
    first = forms[0]
    assert first.shape == (300, 32738)
    for other in forms[1:]:
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(other.X, part), getattr(first.X, part))
        assert other.obs_names.tolist() == first.obs_names.tolist()
        assert other.var_names.tolist() == first.var_names.tolist()
        assert other.var["gene_ids"].tolist() == first.var["gene_ids"].tolist()
