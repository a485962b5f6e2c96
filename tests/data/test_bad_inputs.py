"""What is wrong, where, and what to do: the message of each kind of bad input."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata import AnnData
from count_data import TENX, annotated, dense_counts, write_v3_h5

from fastvae import _memory
from fastvae.data import checks as validate
from fastvae.data import read
from fastvae.errors import InputError


def _with_value(value: float) -> AnnData:
    counts = dense_counts()
    counts[7, 5] = value
    return annotated(sp.csr_matrix(counts))


def _log_normalised() -> np.ndarray:
    counts = dense_counts()
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def _repeated_genes() -> AnnData:
    adata = annotated()
    adata.var_names = ["G3" if name == "G12" else name for name in adata.var_names]
    return adata


def _unsound() -> sp.csr_matrix:
    matrix = sp.csr_matrix(dense_counts())
    matrix.indices[5] = 99
    return matrix


IN_MEMORY: dict[str, tuple[Callable[[], Any], str]] = {
    "negative": (
        lambda: _with_value(-3),
        r"X of the AnnData object holds a negative value: -3 at cell 'AAAC7-1' \(row 7\), "
        r"gene 'G5' \(column 5\).*scaled",
    ),
    "NaN": (lambda: _with_value(np.nan), r"a NaN: nan at cell 'AAAC7-1' \(row 7\), gene 'G5'"),
    "infinite": (lambda: _with_value(np.inf), r"an infinite value: inf at cell 'AAAC7-1'"),
    "too large for float32": (
        lambda: np.where(np.eye(4) > 0, 1e300, 1.0),
        r"an infinite value: inf at cell 'cell_0' \(row 0\), gene 'gene_0'",
    ),
    "log-normalised": (
        lambda: annotated(_log_normalised()),
        r"looks log-normalised: 100 % of its non-zero values are.*Raw counts are needed, and",
    ),
    "normalised": (
        lambda: annotated(np.expm1(_log_normalised())),
        r"looks normalised: .*every cell sums to 10000\. Raw counts are needed, and",
    ),
    "nothing but zeros": (lambda: np.zeros((4, 3)), r"holds nothing but zeros"),
    "no cells": (lambda: np.zeros((0, 3)), r"is empty \(0 cells x 3 genes\).*filtering"),
    "no genes": (lambda: sp.csr_matrix((3, 0)), r"is empty \(3 cells x 0 genes\)"),
    "one cell": (lambda: np.ones((1, 3)), r"has one cell; at least two.*transposed"),
    "one gene": (lambda: np.ones((3, 1)), r"has one gene; at least two.*transposed"),
    "duplicate genes": (
        _repeated_genes,
        r"the AnnData object has duplicate genes: 'G3'\. .*var_names_make_unique\(\)",
    ),
    "three dimensions": (lambda: np.ones((2, 2, 2)), r"shape \(2, 2, 2\); expected cells x genes"),
    "text": (lambda: np.array([["a", "b"], ["c", "d"]]), r"holds <U1 values; counts must be"),
    "complex": (lambda: np.ones((2, 2)) * 1j, r"holds complex128 values"),
    "unsound sparse": (_unsound, r"not a sound sparse matrix.*"),
    "a list": (lambda: [[1, 2]], r"cannot read a list; expected an \.h5ad file.*AnnData object"),
}


@pytest.mark.parametrize("case", IN_MEMORY)
def test_in_memory(case: str) -> None:
    make, message = IN_MEMORY[case]
    source = make()
    with pytest.raises(InputError, match=message):
        read(source)


def _not_hdf5(path: Path) -> None:
    path.write_text("cell,gene,count\n")


def _zipped(path: Path) -> None:
    annotated().write_h5ad(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def _truncated(path: Path) -> None:
    annotated().write_h5ad(path)
    path.write_bytes(path.read_bytes()[:-2000])


def _hdf5_of_other_kind(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weights"] = np.ones(3)


def _loom(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["matrix"] = np.ones((3, 3))


def _mudata(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("mod/rna")
        file.create_group("obs")


def _no_x(path: Path) -> None:
    adata = annotated()
    adata.layers["counts"] = adata.X
    adata.X = None
    adata.write_h5ad(path)


def _edited(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        annotated().write_h5ad(path)
        with h5py.File(path, "r+") as file:
            change(file)

    return make


def _shorten_pointers(file: h5py.File) -> None:
    pointers = file["X/indptr"][:-1]
    del file["X/indptr"]
    file["X/indptr"] = pointers


def _wild_index(file: h5py.File) -> None:
    file["X/indices"][3] = 4000


def _other_shape(file: h5py.File) -> None:
    file["X"].attrs["shape"] = np.array([41, 13])


def _drop_data(file: h5py.File) -> None:
    del file["X/data"]


def _odd_group(file: h5py.File) -> None:
    file["X"].attrs["encoding-type"] = "awkward-array"


def _drop_index(file: h5py.File) -> None:
    del file["obs/_index"]


ON_DISK: dict[str, tuple[Callable[[Path], None], str]] = {
    "absent": (lambda path: None, r"does not exist; expected an \.h5ad file"),
    "0 bytes": (lambda path: path.touch(), r"is empty \(0 bytes\)"),
    "not HDF5": (_not_hdf5, r"is not an HDF5 file; expected \.h5ad, 10x \.h5"),
    "gzipped": (_zipped, r"gzip-compressed; unpack it first \(gunzip data\.h5ad\)"),
    "truncated": (_truncated, r"is damaged or truncated.*copy or download it again"),
    "other HDF5": (_hdf5_of_other_kind, r"is an HDF5 file of unknown kind; expected"),
    "loom": (_loom, r"is a loom file; read it with anndata"),
    "MuData": (_mudata, r"is a MuData file; pass the AnnData of its RNA"),
    "no X": (_no_x, r"has no X; choose a layer with layer=: there are 'counts'"),
    "short indptr": (_edited(_shorten_pointers), r"X of .*is damaged: its row pointers"),
    "index outside": (_edited(_wild_index), r"X of .*is damaged: an index lies outside 0\.\.12"),
    "no data array": (_edited(_drop_data), r"X of .*is damaged: it has no 'data'"),
    "shapes differ": (_edited(_other_shape), r"is 41 x 13, but there are 40 cell names"),
    "unknown group": (
        _edited(_odd_group),
        r"stored as awkward-array; expected a CSR, CSC or dense",
    ),
    "broken obs": (_edited(_drop_index), r"obs cannot be read.*update anndata"),
    "zarr": (lambda path: (path.mkdir(), (path / ".zgroup").touch()), r"damaged or incomplete"),
    "another zarr": (
        lambda path: zarr.open_group(path, mode="w"),
        r"is a zarr store without obs and var; expected what AnnData\.write_zarr",
    ),
}


@pytest.mark.parametrize("case", ON_DISK)
def test_on_disk(tmp_path: Path, case: str) -> None:
    make, message = ON_DISK[case]
    path = tmp_path / "data.h5ad"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert "data.h5ad" in str(caught.value)


def test_10x_file_without_features(tmp_path: Path) -> None:
    path = write_v3_h5(tmp_path / "run.h5", dense_counts(), ["Gene Expression"] * 13)
    with h5py.File(path, "r+") as file:
        del file["matrix/features"]
    with pytest.raises(InputError, match=r"run\.h5 is damaged: matrix has no features"):
        read(path)
    with h5py.File(path, "r+") as file:
        file.create_group("matrix/features")
    with pytest.raises(InputError, match=r"run\.h5 cannot be read: it is damaged or incomplete"):
        read(path)


@pytest.mark.parametrize("stored", [False, True], ids=["object", "file"])
def test_counts_elsewhere_are_pointed_out(tmp_path: Path, stored: bool) -> None:
    adata = annotated()
    adata.layers["counts"] = adata.X.copy()
    adata.layers["scaled"] = adata.X - 0.5 * (adata.X > 0)
    adata.raw = adata
    adata.X = sp.csr_matrix(_log_normalised())
    source: Any = adata
    if stored:
        source = tmp_path / "data.h5ad"
        adata.write_h5ad(source)
    with pytest.raises(InputError, match="looks log-normalised") as caught:
        read(source)
    assert "layer 'counts' looks like counts: pass layer='counts'" in str(caught.value)
    assert "raw looks like counts: pass use_raw=True" in str(caught.value)
    assert "scaled" not in str(caught.value)
    np.testing.assert_array_equal(read(source, layer="counts").X.toarray(), dense_counts())


def test_a_few_fractions_warn_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = _with_value(2.5)
    with pytest.warns(
        UserWarning, match=r"1 of \d+ values .* first 2\.5 at cell 'AAAC7-1' \(row 7\), gene 'G5'"
    ):
        found = read(adata)
    assert found.X[7, 5] == 2.5
    monkeypatch.setattr(validate, "_CHUNK", 7)
    with pytest.warns(UserWarning, match=r"first 2\.5 at cell 'AAAC7-1' \(row 7\), gene 'G5'"):
        read(adata)


def test_many_fractions_in_large_counts_warn() -> None:
    # Expected counts of an aligner: fractional, but neither logs nor scaled to one total.
    counts = dense_counts() * 40.3
    with pytest.warns(UserWarning, match="are not whole numbers"):
        found = read(counts)
    np.testing.assert_allclose(found.X.toarray(), counts)


@pytest.mark.parametrize("value", [-3, np.nan, np.inf])
def test_bad_value_is_found_in_any_chunk(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(validate, "_CHUNK", 7)
    with pytest.raises(InputError, match=r"at cell 'AAAC7-1' \(row 7\), gene 'G5' \(column 5\)"):
        read(_with_value(value))


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "10x", "folder", "object", "array"])
def test_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    counts = dense_counts()
    stored = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}.get(form)
    source: Any
    if stored:
        source = tmp_path / "data.h5ad"
        annotated(stored(counts)).write_h5ad(source)
    elif form == "10x":
        source = TENX / "3.0.0" / "filtered_feature_bc_matrix.h5"
    elif form == "folder":
        source = TENX / "3.0.0" / "filtered_feature_bc_matrix"
    else:
        source = annotated() if form == "object" else counts
    monkeypatch.setattr(_memory, "available_memory", lambda: 100)
    with pytest.raises(
        InputError,
        match=r"not enough memory: .*needs about \d+\.\d MB, 0\.0 MB are available; keep fewer",
    ):
        read(source)
    monkeypatch.setattr(_memory, "available_memory", lambda: None)
    assert read(source).n_obs > 0


def test_available_memory_is_plausible() -> None:
    available = _memory.available_memory()
    assert available is None or 1 << 20 < available < 1 << 50


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.h5ad"
    annotated().write_h5ad(path)
    # Root may read everything, so the answer of the system is replaced.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match=r"data\.h5ad cannot be opened: no permission"):
        read(path)
