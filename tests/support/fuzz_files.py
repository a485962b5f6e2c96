"""Files of HDF5 and zarr stores, damaged object by object, and what anndata's own readers find.

`damaged` makes the input of a number: a sound file with one to three changes of its objects.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import fuzz_hdf5
import fuzz_zarr
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.io import read_elem
from count_data import annotated, dense_counts, write_v3_h5
from fuzzing import WrongAnswer
from typer.testing import CliRunner

from fastvae import Model
from fastvae.cli import app
from fastvae.data import read
from fastvae.errors import InputError

SMALL = {"n_latent": 2, "n_hidden": 4}
N, G = 40, 13


def _cells(counts: Any, *, full: bool) -> AnnData:
    adata = annotated(counts)
    adata.obs["depth"] = np.arange(N, dtype=np.float32)
    adata.obs["flag"] = np.arange(N) % 2 == 0
    adata.obs["whole"] = pd.array([1, None] * (N // 2), dtype="Int32")
    adata.obs["maybe"] = pd.array([True, None] * (N // 2), dtype="boolean")
    if full:
        adata.layers["counts"] = adata.X.copy()
        adata.raw = adata
        adata.uns["note"] = {"a": 1}
        adata.obsm["X_pca"] = np.zeros((N, 2))
        adata.varm["PCs"] = np.zeros((G, 2))
        adata.obsp["distances"] = sp.csr_matrix((N, N))
    return adata


def _v2(path: Path) -> None:
    counts = sp.csr_matrix(dense_counts(N, G).astype(np.int32))
    with h5py.File(path, "w") as file:
        group = file.create_group("hg19")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        group["shape"] = np.array([G, N])
        group["barcodes"] = np.array([f"AAAC{i}-1" for i in range(N)], dtype="S9")
        group["genes"] = np.array([f"ENSG{i:04d}" for i in range(G)], dtype="S9")
        group["gene_names"] = np.array([f"G{i}" for i in range(G)], dtype="S9")


def _old(path: Path) -> None:
    """Tables for obs and var, as anndata before 0.7 wrote them."""
    obs = [(f"AAAC{i}-1".encode(), float(i), i % 3) for i in range(N)]
    with h5py.File(path, "w") as file:
        file["X"] = dense_counts(N, G)
        file["obs"] = np.array(obs, dtype=[("index", "S9"), ("depth", "f4"), ("batch", "i1")])
        file["var"] = np.array([(f"G{i}".encode(),) for i in range(G)], dtype=[("index", "S9")])
        file["uns/batch_categories"] = np.array([b"a", b"b", b"c"])


@functools.cache
def sound() -> dict[str, Path]:
    """One file of each kind, undamaged."""
    folder = Path(tempfile.mkdtemp(prefix="sound"))
    counts = dense_counts(N, G)
    plain = _cells(sp.csr_matrix(counts), full=True)
    plain.write_h5ad(folder / "csr.h5ad")
    plain.write_h5ad(folder / "packed.h5ad", compression="gzip")
    _cells(sp.csc_matrix(counts), full=False).write_h5ad(folder / "csc.h5ad")
    _cells(counts, full=False).write_h5ad(folder / "dense.h5ad")
    write_v3_h5(folder / "v3.h5", counts, ["Gene Expression"] * G)
    _v2(folder / "v2.h5")
    _old(folder / "old.h5ad")
    for zarr_format in (2, 3):
        with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=zarr_format):
            warnings.simplefilter("ignore")
            plain.write_zarr(folder / f"format{zarr_format}.zarr")
            _cells(counts, full=False).write_zarr(folder / f"dense{zarr_format}.zarr")
    return {path.name: path for path in sorted(folder.iterdir())}


def damaged(number: int, folder: Path) -> Path:
    """Write the input of a number to an empty folder."""
    rng = np.random.default_rng([2026, number])
    source = list(sound().values())[number % len(sound())]
    path = folder / source.name
    if source.is_dir():
        shutil.copytree(source, path)
        change: Callable[..., None] = fuzz_zarr.change
    else:
        shutil.copy(source, path)
        change = fuzz_hdf5.change
    for _ in range(1 + int(rng.integers(3)) // 2 + int(rng.integers(4)) // 3):
        change(rng, path)
    return path


# What other readers find


def _canonical(matrix: Any) -> sp.csr_matrix:
    found = sp.csr_matrix(matrix, dtype=np.float32)
    found.sum_duplicates()
    found.eliminate_zeros()
    return found


def _parts(group: Any) -> list[Any]:
    x = group["X"]
    return [
        x[...] if hasattr(x, "shape") else read_elem(x),
        *map(read_elem, (group["obs"], group["var"])),
    ]


def _other_reader(path: Path) -> AnnData:
    if path.suffix == ".h5":
        return _tenx(path)
    if path.is_dir():
        mode = 3 if (path / "zarr.json").exists() else 2
        group = zarr.open_group(path, mode="r", zarr_format=mode, use_consolidated=False)
        parts = _parts(group)
    else:
        with h5py.File(path, "r") as file:
            if isinstance(file["obs"], h5py.Dataset):
                return anndata.read_h5ad(path)
            parts = _parts(file)
    return AnnData(_canonical(parts[0]), obs=parts[1], var=parts[2])


def _tenx(path: Path) -> AnnData:
    with h5py.File(path, "r") as file:
        group = file["matrix" if "matrix" in file else "hg19"]
        parts = tuple(group[name][:] for name in ("data", "indices", "indptr"))
        counts = sp.csr_matrix(parts, shape=tuple(group["shape"][:])[::-1])
        barcodes = [str(name, "utf-8") for name in group["barcodes"][:].astype("S").tolist()]
        names = group["features/name" if "features" in group else "gene_names"][:].astype("S")
        symbols = [str(name, "utf-8") for name in names.tolist()]
        if "features" in group and "feature_type" in group["features"]:
            keep = group["features/feature_type"][:].astype("S") == b"Gene Expression"
            counts, symbols = counts[:, keep], [s for s, k in zip(symbols, keep, strict=True) if k]
    return AnnData(
        _canonical(counts), obs=pd.DataFrame(index=barcodes), var=pd.DataFrame(index=symbols)
    )


def _same(found: AnnData, wanted: AnnData) -> str:
    """Say what differs; nothing if they are the same."""
    if found.shape != wanted.shape:
        return f"shape {found.shape}, not {wanted.shape}"
    if (_canonical(found.X) != _canonical(wanted.X)).nnz:
        return "counts"
    # as text: a name that is missing equals nothing, itself neither
    if [str(name) for name in found.obs_names] != [str(name) for name in wanted.obs_names]:
        return f"names of cells {list(found.obs_names)[:3]}, not {list(wanted.obs_names)[:3]}"
    ours, theirs = [str(name) for name in found.var_names], [str(name) for name in wanted.var_names]
    if ours != theirs and len(set(theirs)) == len(theirs):  # repeated names get suffixes
        return f"names of genes {ours[:3]}, not {theirs[:3]}"
    if list(found.obs.columns) != list(wanted.obs.columns):
        return f"columns {list(found.obs.columns)}, not {list(wanted.obs.columns)}"
    for name in found.obs.columns:
        ours, theirs = (frame.obs[name].astype(str).tolist() for frame in (found, wanted))
        if ours != theirs:
            return f"obs[{name!r}]: {ours[:4]}, not {theirs[:4]}"
    return ""


def _check(found: AnnData, path: Path, original: AnnData, how: str) -> None:
    if not _same(found, original):
        return
    try:
        wanted = _other_reader(path)
    except Exception as error:
        raise WrongAnswer(
            f"{how} of {path.name}: {_same(found, original)}; another reader says {error!r:.300}"
        ) from error
    if difference := _same(found, wanted):
        raise WrongAnswer(f"{how} of {path.name}: {difference}")


@functools.cache
def _original(name: str) -> AnnData:
    return _other_reader(sound()[name])


def _tried(way: Callable[[], Any]) -> Any:
    """Return what came out, or None where it was refused in one clear message."""
    try:
        return way()
    except InputError as error:
        text = str(error)
        text.encode()  # a terminal has to show it
        if len(text) < 30 or len(text) > 2000 or "\n" in text:
            raise WrongAnswer(f"not one clear message: {text[:3000]!r}") from error
        return None


def _command(*arguments: Any) -> bool:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code not in (0, 2) or "Traceback" in result.output:
        raise WrongAnswer(f"status {result.exit_code}: {result.output[:2000]}")
    return result.exit_code == 0


def try_one(number: int, folder: Path) -> str:
    """Read the input of a number by every way in; see `fuzzing`."""
    path = damaged(number, folder)
    found = _tried(lambda: read(path))
    if found is not None:
        _check(found, path, _original(path.name), "read")
    residence = "host" if path.suffix == ".h5" else "disk"
    key = None if path.suffix == ".h5" else "batch"
    made = _tried(lambda: Model(path, batch_key=key, residence=residence, **SMALL))
    _command("info", path)
    if number % 5 == 0 and _command("convert", path, "-o", folder / "out.zarr", "--keep-order"):
        _check(read(folder / "out.zarr"), path, _original(path.name), "what convert makes")
    if found is not None and made is not None:
        return "read"
    return "read in part" if (found is None) != (made is None) else "refused"
