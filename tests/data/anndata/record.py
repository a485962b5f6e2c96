"""Write what one version of anndata writes, as fixtures for the tests of the readers.

Run once for each version, where it is installed::

    python tests/data/anndata/record.py

Writes ``VERSION.tar.gz`` beside itself, with the same cells as ``cells.h5ad`` and ``cells.zarr``.
"""

import pathlib
import sys
import tarfile
import tempfile

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

HERE = pathlib.Path(__file__).parent
COUNTS = np.array(
    [[0, 3, 1, 0], [2, 0, 0, 1], [0, 0, 5, 2], [1, 1, 0, 0], [0, 7, 0, 3], [4, 0, 2, 0]],
    dtype=np.float32,
)


def plain_columns() -> dict:
    """Columns that every version can write."""
    return {
        "text": ["p", "q", "r", "s", "t", "u"],
        "donor": pd.Categorical(["d1", "d2", "d1", "d2", "d1", "d2"]),
        "stage": pd.Categorical(
            ["late", "early", "late", "late", "early", "late"], ["early", "late"], ordered=True
        ),
        "sorted_into": pd.Categorical(["B", None, "T", "B", None, "T"]),
        "lane": np.array([3, 1, 2, 3, 1, 2]),
        "score": np.array([0.5, np.nan, 1.5, 2.0, np.nan, 0.0], dtype=np.float32),
        "control": np.array([True, False, True, False, False, True]),
    }


def newer_columns() -> dict:
    """Columns that some versions refuse."""
    return {
        "dose": pd.array([1, None, 3, 1, None, 3], dtype="Int64"),
        "treated": pd.array([True, None, False, True, None, False], dtype="boolean"),
        "note": pd.array(["v", None, "w", "x", "y", None], dtype="string"),
        "site": pd.Categorical(pd.array(["east", "west"] * 3, dtype="string")),
    }


def writes(column: object) -> bool:
    """Whether this version writes such a column."""
    frame = pd.DataFrame({"column": column}, index=list("abcdef"))
    with tempfile.TemporaryDirectory() as folder:
        try:
            anndata.AnnData(COUNTS, obs=frame).write_h5ad(f"{folder}/one.h5ad")
            anndata.AnnData(COUNTS, obs=frame).write_zarr(f"{folder}/one.zarr")
        except Exception as error:
            print("left out:", str(error).splitlines()[0])
            return False
    return True


def main() -> None:
    """Write the archive."""
    if hasattr(anndata, "settings") and hasattr(anndata.settings, "allow_write_nullable_strings"):
        anndata.settings.allow_write_nullable_strings = True
    columns = plain_columns()
    columns.update({name: c for name, c in newer_columns().items() if writes(c)})
    obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(6)])
    var = pd.DataFrame({"gene_ids": list("wxyz")}, index=["G1", "G2", "G3", "G4"])
    adata = anndata.AnnData(sp.csr_matrix(COUNTS), obs=obs, var=var)
    adata.raw = adata
    adata.layers["counts"] = sp.csr_matrix(COUNTS)
    adata.X = sp.csr_matrix(np.log1p(COUNTS))
    adata.obsm["X_pca"] = np.zeros((6, 2))
    adata.uns["method"] = {"name": "none"}
    with tempfile.TemporaryDirectory() as folder:
        adata.write_h5ad(f"{folder}/cells.h5ad")
        adata.write_zarr(f"{folder}/cells.zarr")
        with tarfile.open(HERE / f"{anndata.__version__}.tar.gz", "w:gz") as archive:
            for name in ("cells.h5ad", "cells.zarr"):
                archive.add(f"{folder}/{name}", name)


if __name__ == "__main__":
    sys.exit(main())
