"""Small count matrices in every form that the readers take."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from anndata import AnnData

TENX = Path(__file__).parent.parent / "fixtures" / "10x"


def dense_counts(n_cells: int = 40, n_genes: int = 13, seed: int = 0) -> np.ndarray:
    """Counts with about 70 % zeros, no empty cell, and one value that needs two bytes."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.3, 2.0, size=(n_cells, n_genes))).astype(np.float32)
    counts[:, 0] += 1
    counts[3, 2] = 1000
    return counts


def annotated(counts: np.ndarray | sp.spmatrix | None = None) -> AnnData:
    """AnnData with a batch, a label and named axes; X is CSR float32."""
    counts = sp.csr_matrix(dense_counts()) if counts is None else counts
    n_cells, n_genes = counts.shape
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical([f"b{i % 3}" for i in range(n_cells)]),
            "cell_type": [("T", "B")[i % 2] for i in range(n_cells)],
        },
        index=[f"AAAC{i}-1" for i in range(n_cells)],
    )
    var = pd.DataFrame(
        {"gene_ids": [f"ENSG{i:04d}" for i in range(n_genes)]},
        index=[f"G{i}" for i in range(n_genes)],
    )
    return AnnData(X=counts, obs=obs, var=var)


def write_mtx_folder(
    folder: Path,
    counts: np.ndarray,
    *,
    version: int = 3,
    zipped: tuple[str, ...] = (),
    types: list[str] | None = None,
    symbols: list[str] | None = None,
) -> Path:
    """Write genes x cells as Cell Ranger does; `zipped` names the files to compress."""
    folder.mkdir(parents=True, exist_ok=True)
    n_cells, n_genes = counts.shape
    symbols = symbols or [f"G{i}" for i in range(n_genes)]
    types = types or ["Gene Expression"] * n_genes
    lines = [f"ENSG{i:04d}\t{symbols[i]}" for i in range(n_genes)]
    if version == 3:
        lines = [f"{line}\t{kind}" for line, kind in zip(lines, types, strict=True)]
    scipy.io.mmwrite(folder / "matrix.mtx", sp.coo_matrix(counts.T.astype(np.int64)))
    (folder / "barcodes.tsv").write_text("".join(f"AAAC{i}-1\n" for i in range(n_cells)))
    name = "features.tsv" if version == 3 else "genes.tsv"
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    for plain in list(folder.iterdir()):
        if plain.name in zipped:
            (folder / f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
            plain.unlink()
    return folder


def write_v3_h5(
    path: Path, counts: np.ndarray, types: list[str], genomes: list[str] | None = None
) -> Path:
    """Write a Cell Ranger v3 file."""
    n_cells, n_genes = counts.shape
    matrix = sp.csr_matrix(counts.astype(np.int32))
    genomes = genomes or ["GRCh38"] * n_genes
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = (
            matrix.data,
            matrix.indices.astype(np.int64),
            matrix.indptr.astype(np.int64),
        )
        group["shape"] = np.array([n_genes, n_cells], dtype=np.int32)
        group["barcodes"] = np.array([f"AAAC{i}-1" for i in range(n_cells)], dtype="S18")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:04d}" for i in range(n_genes)], dtype="S15")
        features["name"] = np.array([f"G{i}" for i in range(n_genes)], dtype="S15")
        features["feature_type"] = np.array(types, dtype="S20")
        features["genome"] = np.array(genomes, dtype="S12")
    return path
