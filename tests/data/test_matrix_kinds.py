"""Matrices that are no counts in memory: what they are called, and what to do."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from count_data import annotated

from fastvae import InputError, Model
from fastvae.data.sources.matrix import to_csr


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("dask.array.core", r"^X is a dask array.* give the path of its file"),
        ("daskless", r"^X is of type Array; expected a scipy sparse matrix.*to_memory"),
    ],
)
def test_other_arrays_are_refused_by_name(module: str, message: str) -> None:
    array = type("Array", (), {"__module__": module, "shape": (2, 3)})()
    with pytest.raises(InputError, match=message):
        to_csr(array, (2, 3), "X")


def test_lazy_anndata_is_sent_to_its_file(tmp_path) -> None:
    pytest.importorskip("dask")
    pytest.importorskip("xarray")
    annotated().write_h5ad(tmp_path / "cells.h5ad")
    lazy = anndata.experimental.read_lazy(tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match="X of the AnnData object is a dask array"):
        Model(lazy)
    model = Model(tmp_path / "cells.h5ad", n_latent=2, n_hidden=4)
    assert np.array_equal(model.gene_names, annotated().var_names)
