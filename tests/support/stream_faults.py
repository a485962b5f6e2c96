"""Bad inputs of data in several files, on disk, and of their conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import scipy.sparse as sp
from count_data import annotated, dense_counts, write_mtx_folder

from fastvae import Model
from fastvae.data.convert import check_target
from fastvae.data.opening import open_data
from fastvae.data.request import Source, Wanted


def _h5ad(folder: Path, name: str = "cells.h5ad", adata: anndata.AnnData | None = None) -> Path:
    (annotated() if adata is None else adata).write_h5ad(folder / name)
    return folder / name


def _disk(data: Any, limit: str | None = None, **wanted: Any) -> None:
    open_data(data, Wanted(**wanted), Source("disk", limit))


def _other_genes(folder: Path) -> list[Path]:
    adata = annotated()
    adata.var_names = adata.var.pop("gene_ids").to_numpy()
    return [_h5ad(folder, "a.h5ad"), _h5ad(folder, "b.h5ad", adata)]


def _by_gene(folder: Path) -> Path:
    return _h5ad(folder, adata=annotated(sp.csc_matrix(dense_counts())))


def _bad_column(folder: Path) -> Path:
    path = _h5ad(folder)
    with h5py.File(path, "r+") as file:
        file["X/indices"][100] = 13
    return path


def _changed(folder: Path) -> None:
    path = _h5ad(folder)
    store, _ = open_data(path, Wanted(), Source("disk"))
    path.unlink()
    store.rows([0, 1])


def _converted_twice(folder: Path) -> None:
    (folder / "atlas.zarr").mkdir()
    check_target(folder / "atlas.zarr", overwrite=False)


CASES: list[tuple[str, Callable[[Path], Any]]] = [
    ("a residence that is none", lambda d: Model(annotated(), residence="gpu")),
    ("an object that should stay on disk", lambda d: _disk(annotated())),
    (
        "a folder that cannot be streamed",
        lambda d: _disk(write_mtx_folder(d / "mtx", dense_counts())),
    ),
    ("a memory limit that is no size", lambda d: Source("disk", "lots")),
    ("a memory limit too small", lambda d: _disk(_h5ad(d), "9 MB")),
    (
        "too large a matrix stored by gene",
        lambda d: _disk(_by_gene(d), "1KB"),
    ),
    ("a damaged file streamed", lambda d: _disk(_bad_column(d))),
    ("a file deleted while it is streamed", _changed),
    ("a file given twice", lambda d: _disk([_h5ad(d), d / "cells.h5ad"])),
    ("files without a gene in common", lambda d: _disk(_other_genes(d))),
    ("a file that lacks a gene asked for", lambda d: _disk([_h5ad(d)], gene_names=["G1", "XIST"])),
    ("a batch key of another file", lambda d: _disk([_h5ad(d)], batch_key_of={"b.h5ad": "x"})),
    ("more variable genes than genes", lambda d: Model(annotated(), n_top_genes=5000)),
    ("a converted file that is there", _converted_twice),
]
