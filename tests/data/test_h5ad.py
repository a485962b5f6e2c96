"""AnnData on disk and in memory, sparse matrices and arrays: one form comes out."""

from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from count_data import annotated, dense_counts

from fastvae.data import read
from fastvae.data.sources import matrix as _matrix
from fastvae.errors import InputError

FORMS = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "dense": np.asarray,
    "csr float64": lambda x: sp.csr_matrix(x.astype(np.float64)),
    "csr int64": lambda x: sp.csr_matrix(x.astype(np.int64)),
    "dense uint16": lambda x: x.astype(np.uint16),
}


@pytest.fixture(params=["whole", "blocks"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "blocks":
        monkeypatch.setattr(_matrix, "_BLOCK_BYTES", 128)


@pytest.mark.usefixtures("block_size")
@pytest.mark.parametrize("slot", ["X", "layer", "raw"])
@pytest.mark.parametrize("form", FORMS)
def test_every_stored_form_and_slot(tmp_path: Path, form: str, slot: str) -> None:
    counts = dense_counts()
    wanted = FORMS[form](counts)
    adata = annotated(wanted if slot != "layer" else None)
    if slot == "layer":
        adata.layers["counts"] = wanted
        adata.X = sp.csr_matrix(counts[::-1])
    elif slot == "raw":
        adata.raw = adata
        adata = adata[:, 2:9].copy()
        adata.X = sp.csr_matrix(np.log1p(adata.X))
    path = tmp_path / "data.h5ad"
    adata.write_h5ad(path)
    options = {"X": {}, "layer": {"layer": "counts"}, "raw": {"use_raw": True}}[slot]
    backed = anndata.read_h5ad(path, backed="r")
    for source in (path, adata, backed):
        found = read(source, **options)
        np.testing.assert_array_equal(found.X.toarray(), counts)
        assert found.X.dtype == np.float32
        assert found.X.has_canonical_format
        pd.testing.assert_frame_equal(found.obs, adata.obs)
        pd.testing.assert_frame_equal(found.var, (adata.raw if slot == "raw" else adata).var)
    backed.file.close()


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_view_of_a_backed_object(tmp_path: Path, form: str) -> None:
    counts = dense_counts()
    adata = annotated(FORMS[form](counts))
    adata.raw = adata
    adata.write_h5ad(tmp_path / "data.h5ad")
    backed = anndata.read_h5ad(tmp_path / "data.h5ad", backed="r")
    view = backed[5:30, [1, 4, 8]]
    np.testing.assert_array_equal(read(view).X.toarray(), counts[5:30][:, [1, 4, 8]])
    np.testing.assert_array_equal(read(view, use_raw=True).X.toarray(), counts[5:30])
    backed.file.close()


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
@pytest.mark.parametrize("make", ["matrix", "array"])
def test_sparse_of_any_format(kind: str, make: str) -> None:
    counts = dense_counts()
    source = getattr(sp, f"{kind}_{make}")(counts)
    np.testing.assert_array_equal(read(source).X.toarray(), counts)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8, bool])
def test_arrays_of_any_number_type_and_layout(dtype: type) -> None:
    counts = (dense_counts() % 50).astype(dtype)
    expected = counts.astype(np.float32)
    for source in (counts, np.asfortranarray(counts), np.repeat(counts, 2, axis=0)[::2]):
        found = read(source)
        np.testing.assert_array_equal(found.X.toarray(), expected)
    assert found.var_names[:2].tolist() == ["gene_0", "gene_1"]


def test_unsorted_and_duplicate_entries_are_put_in_order() -> None:
    indptr = np.array([0, 4, 4, 6], dtype=np.int64)
    indices = np.array([3, 0, 3, 1, 2, 0], dtype=np.int64)
    values = np.array([1.0, 2.0, 4.0, 0.0, 7.0, 5.0])
    source = sp.csr_matrix((3, 4))
    source.data, source.indices, source.indptr = values, indices, indptr
    found = read(source).X
    assert found.indptr.tolist() == [0, 2, 2, 4]
    assert found.indices.tolist() == [0, 3, 0, 2]
    assert found.data.tolist() == [2.0, 5.0, 5.0, 7.0]
    np.testing.assert_array_equal(indices, [3, 0, 3, 1, 2, 0])
    assert source.indptr.dtype == np.int64


def test_source_is_neither_modified_nor_shared() -> None:
    adata = annotated()
    adata.layers["counts"] = adata.X.copy()
    before = adata.copy()
    for options in ({}, {"layer": "counts"}):
        found = read(adata, **options)
        found.X.data[:] = 9
        found.obs["batch"] = "x"
        found.var["gene_ids"] = "y"
    assert (adata.X != before.X).nnz == 0
    assert (adata.layers["counts"] != before.layers["counts"]).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    view = adata[:10]
    read(view)
    assert view.is_view


def test_empty_cells_and_repeated_barcodes_are_kept() -> None:
    counts = dense_counts()
    counts[[4, 9]] = 0
    adata = annotated(sp.csr_matrix(counts))
    adata.obs_names = ["same"] * adata.n_obs
    found = read(adata)
    assert found.obs_names.tolist() == ["same"] * 40
    np.testing.assert_array_equal(found.X.toarray(), counts)


def test_file_of_an_anndata_before_its_encoding_attributes(tmp_path: Path) -> None:
    counts = dense_counts(6, 4)
    path = tmp_path / "old.h5ad"
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        matrix = sp.csr_matrix(counts)
        group.attrs["h5sparse_format"] = "csr"
        group.attrs["h5sparse_shape"] = np.array(matrix.shape)
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        file["obs"] = np.array([(f"c{i}".encode(),) for i in range(6)], dtype=[("index", "S4")])
        file["var"] = np.array([(f"g{i}".encode(),) for i in range(4)], dtype=[("index", "S4")])
    with pytest.warns(anndata.OldFormatWarning):
        found = read(path)
    np.testing.assert_array_equal(found.X.toarray(), counts)
    assert found.var_names.tolist() == ["g0", "g1", "g2", "g3"]


def test_dense_file_is_never_dense_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "dense.h5ad"
    adata = annotated(np.zeros((3000, 4000), dtype=np.float32))
    adata.X[:, 0] = 1
    adata.write_h5ad(path, compression="gzip")
    del adata
    tracemalloc.start()
    original, _matrix._BLOCK_BYTES = _matrix._BLOCK_BYTES, 1 << 20
    try:
        found = read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        _matrix._BLOCK_BYTES = original
        tracemalloc.stop()
    assert found.X.nnz == 3000
    assert peak < 3000 * 4000 * 4 / 4


def test_options_that_are_not_there() -> None:
    adata = annotated()
    with pytest.raises(InputError, match=r"no layer 'counts'; there are no layers"):
        read(adata, layer="counts")
    adata.layers["Counts"] = adata.X.copy()
    adata.layers["log"] = adata.X.copy()
    with pytest.raises(InputError, match=r"'Counts', 'log'; did you mean 'Counts'"):
        read(adata, layer="counts")
    with pytest.raises(InputError, match="has no raw; leave out use_raw=True; choose a layer"):
        read(adata, use_raw=True)
    with pytest.raises(InputError, match="exclude each other"):
        read(adata, use_raw=True, layer="log")
    with pytest.raises(InputError, match="genome= is for 10x"):
        read(adata, genome="GRCh38")
    empty = anndata.AnnData(obs=adata.obs, var=adata.var, layers={"Counts": adata.X})
    with pytest.raises(InputError, match=r"has no X; choose a layer.*'Counts'"):
        read(empty)
