"""Columns of obs that files cannot hold: written as text, with one warning; nothing is lost."""

from __future__ import annotations

import datetime
import fractions
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from count_data import annotated, dense_counts

from fastvae import Model

N = 12
AS_TEXT: dict[str, tuple[Any, str]] = {
    "mixed": ([1, "a", None, 2.5, b"x", [1]] * 2, "1"),
    "lists": ([[1, 2]] * N, "[1, 2]"),
    "dicts": ([{"a": 1}] * N, "{'a': 1}"),
    "complex": (np.arange(N) * 1j, "0j"),
    "intervals": (pd.interval_range(0, N, periods=N), "(0, 1]"),
    "periods": (pd.period_range("2020", periods=N, freq="M"), "2020-01"),
    "timedeltas": (pd.to_timedelta(np.arange(N), "h"), "0 days 00:00:00"),
    "dates": (pd.date_range("2020", periods=N), "2020-01-01 00:00:00"),
    "zoned": (pd.date_range("2020", periods=N, tz="UTC"), "2020-01-01 00:00:00+00:00"),
    "days": ([datetime.date(2020, 1, 1)] * N, "2020-01-01"),
    "arrays": ([np.arange(3)] * N, "[0 1 2]"),
    "fractions": ([fractions.Fraction(1, 3)] * N, "1/3"),
    "huge": (np.array([10**30] * N, dtype=object), "1" + "0" * 30),
    "sparse": (pd.arrays.SparseArray([0, 1] * (N // 2)), "0"),
    "nulls": (["a\0b"] * N, "a\ufffdb"),
    "surrogates": (["\udcff"] * N, "?"),
}
KEPT: dict[str, Any] = {
    "numbers": np.arange(N),
    "flags": [True, False] * (N // 2),
    "texts": list("abcdef") * 2,
    "missing": ["a", None] * (N // 2),
    "cut": pd.cut(np.arange(N), 3),
    "whole": pd.array([1, None] * (N // 2), dtype="Int64"),
    "fractional": pd.array([1.5, None] * (N // 2), dtype="Float64"),
    "new_texts": pd.array(["a", None] * (N // 2), dtype="string"),
}


def _odd() -> anndata.AnnData:
    adata = annotated(dense_counts(N, 8))
    for name, (values, _) in AS_TEXT.items():
        adata.obs[name] = pd.Series(values, index=adata.obs_names)
    for name, values in KEPT.items():
        adata.obs[name] = pd.Series(values, index=adata.obs_names)
    adata.obs["a/b"], adata.obs["_index"], adata.obs[5] = 1, 2, 3
    adata.obs.index.name = "numbers"
    return adata


def test_every_column_is_written_and_named_once(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AnnData's own, about the names of columns
        model = Model(_odd(), n_latent=2, n_hidden=4).fit(1, seed=0, progress=False)
    with pytest.warns(UserWarning, match="cannot hold") as caught:
        latent = model.write_latent(tmp_path / "latent.h5ad")
    (said,) = [str(one.message) for one in caught if "cannot hold" in str(one.message)]
    assert all(repr(name) in said for name in AS_TEXT)
    assert not any(repr(name) in said for name in KEPT)
    assert "a/b -> a_b" in said
    assert "_index -> index" in said
    found = anndata.read_h5ad(tmp_path / "latent.h5ad")
    np.testing.assert_array_equal(found.obsm["X_fastvae"], latent)
    for name, (_, first) in AS_TEXT.items():
        assert found.obs[name].iloc[0] == first, name
    assert found.obs["mixed"].isna().sum() == 2
    assert list(found.obs["numbers"]) == list(range(N))
    assert found.obs["flags"].dtype == bool
    assert list(found.obs["missing"].isna()) == [False, True] * (N // 2)
    assert found.obs["fractional"].dtype == np.float64
    assert {"a_b", "index", "5"} <= set(found.obs.columns)


def test_the_latent_space_is_written_whatever_is_in_obs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(annotated(dense_counts(N, 8)), n_latent=2, n_hidden=4)
    model.fit(1, seed=0, progress=False)
    write = anndata.io.write_elem

    def refusing(file: Any, key: str, adata: anndata.AnnData, **options: Any) -> None:
        if adata.obs.shape[1]:
            raise TypeError("no way to write this")
        write(file, key, adata, **options)

    monkeypatch.setattr(anndata.io, "write_elem", refusing)
    with pytest.warns(UserWarning, match=r"no columns of obs and var.*no way to write this"):
        latent = model.write_latent(tmp_path / "latent.h5ad")
    found = anndata.read_h5ad(tmp_path / "latent.h5ad")
    np.testing.assert_array_equal(found.obsm["X_fastvae"], latent)
    assert len(found.obs_names) == N
