"""The store: codes, categories, genes and library statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from count_data import annotated, dense_counts

from fastvae.data import CountStore, read
from fastvae.errors import InputError


def _column(values: Any, n_cells: int = 6) -> CountStore:
    adata = annotated(sp.csr_matrix(dense_counts(n_cells)))
    adata.obs["key"] = values
    return CountStore.from_anndata(read(adata), batch_key="key", labels_key="key")


@pytest.mark.parametrize(
    ("values", "codes", "categories"),
    [
        (list("bacabc"), [1, 0, 2, 0, 1, 2], ("a", "b", "c")),
        (
            pd.Categorical(list("bacabc"), categories=["z", "c", "b", "a"]),
            [1, 2, 0, 2, 1, 0],
            ("c", "b", "a"),
        ),
        ([10, 9, 2, 10, 9, 2], [2, 1, 0, 2, 1, 0], ("2", "9", "10")),
        ([10.0, 9.0, 2.0, 10.0, 9.0, 2.0], [2, 1, 0, 2, 1, 0], ("2", "9", "10")),
        ([True, False, True, True, False, True], [1, 0, 1, 1, 0, 1], ("False", "True")),
        (pd.Categorical([3, 1, 3, 1, 3, 1]), [1, 0, 1, 0, 1, 0], ("1", "3")),
        (pd.array(list("bacabc"), dtype="string"), [1, 0, 2, 0, 1, 2], ("a", "b", "c")),
        (pd.array([2, 1, 2, 1, 2, 1], dtype="Int64"), [1, 0, 1, 0, 1, 0], ("1", "2")),
    ],
    ids=["str", "categorical", "int", "whole floats", "bool", "int categories", "string", "Int64"],
)
def test_columns_of_every_type(values: Any, codes: list[int], categories: tuple[str, ...]) -> None:
    store = _column(values)
    assert store.batch_categories == store.label_categories == categories
    assert store.batch_codes.dtype == np.int64
    np.testing.assert_array_equal(store.batch_codes, codes)
    np.testing.assert_array_equal(store.label_codes, codes)
    assert store.n_batch == store.n_labels == len(categories)


def test_without_keys_there_is_one_group_and_no_category() -> None:
    store = CountStore.from_anndata(read(annotated()))
    assert (store.n_cells, store.n_genes, store.n_batch, store.n_labels) == (40, 13, 0, 0)
    assert store.batch_categories == store.label_categories == ()
    assert not store.batch_codes.any()
    assert store.log_library_mean.shape == (1,)
    assert store.gene_names.tolist() == [f"G{i}" for i in range(13)]
    assert store.cell_names[:2].tolist() == ["AAAC0-1", "AAAC1-1"]


def test_library_statistics_leave_empty_cells_out() -> None:
    counts = dense_counts()
    counts[[0, 3, 4]] = 0
    store = CountStore.from_anndata(read(annotated(sp.csr_matrix(counts))), batch_key="batch")
    assert store.n_empty_cells == 3
    for code in range(3):
        totals = counts[np.arange(40) % 3 == code].sum(1)
        logs = np.log(totals[totals > 0])
        np.testing.assert_allclose(store.log_library_mean[code], logs.mean(), rtol=1e-6)
        np.testing.assert_allclose(store.log_library_var[code], logs.var(), rtol=1e-6)
    assert store.log_library_mean.dtype == store.log_library_var.dtype == np.float32


def test_library_statistics_are_usable_for_degenerate_batches() -> None:
    counts = dense_counts(7, 5)
    counts[2] = 0
    adata = annotated(sp.csr_matrix(counts))
    adata.obs["batch"] = ["one", "many", "none", "many", "many", "many", "many"]
    store = CountStore.from_anndata(read(adata), batch_key="batch")
    logs = np.log(counts[counts.sum(1) > 0].sum(1))
    assert store.batch_categories == ("many", "none", "one")
    np.testing.assert_allclose(store.log_library_mean[1], logs.mean(), rtol=1e-6)
    np.testing.assert_allclose(store.log_library_var[1], logs.var(), rtol=1e-6)
    np.testing.assert_allclose(store.log_library_mean[2], np.log(counts[0].sum()), rtol=1e-6)
    np.testing.assert_allclose(store.log_library_var[2], 1e-4, rtol=1e-6)


def test_what_read_returns_is_shared_and_anything_else_converted() -> None:
    adata = read(annotated())
    assert CountStore.from_anndata(adata).counts is adata.X
    for form in (sp.csc_matrix, np.asarray, lambda x: sp.csr_matrix(x.astype(float))):
        other = annotated(form(dense_counts()))
        store = CountStore.from_anndata(other)
        np.testing.assert_array_equal(store.counts.toarray(), dense_counts())
        assert store.counts.dtype == np.float32
    with pytest.raises(InputError, match="negative"):
        CountStore.from_anndata(annotated(sp.csr_matrix(-dense_counts())))


def test_genes_and_categories_follow_a_saved_model() -> None:
    counts = dense_counts()
    adata = read(annotated(sp.csr_matrix(counts)))
    wanted = ["G7", "G0", "G12", "G3"]
    store = CountStore.from_anndata(
        adata,
        batch_key="batch",
        labels_key="cell_type",
        batch_categories=("new", "b2", "b1", "b0"),
        label_categories=("T", "B"),
        gene_names=wanted,
    )
    np.testing.assert_array_equal(store.counts.toarray(), counts[:, [7, 0, 12, 3]])
    assert store.counts.has_sorted_indices
    assert store.gene_names.tolist() == wanted
    assert store.batch_categories == ("new", "b2", "b1", "b0")
    np.testing.assert_array_equal(store.batch_codes, 3 - np.arange(40) % 3)
    np.testing.assert_array_equal(store.label_codes, np.arange(40) % 2)
    assert np.isfinite(store.log_library_mean).all()
    same = CountStore.from_anndata(adata, gene_names=adata.var_names.tolist())
    assert same.counts is adata.X


def test_what_does_not_fit_a_saved_model() -> None:
    adata = read(annotated())
    with pytest.raises(InputError, match=r"2 of the model's 3 genes are not.*'CD3D', 'LYZ'; use"):
        CountStore.from_anndata(adata, gene_names=["CD3D", "G1", "LYZ"])
    ids = adata.var["gene_ids"].tolist()
    with pytest.raises(InputError, match=r"13 of .*var\['gene_ids'\] has them: pass gene_names="):
        CountStore.from_anndata(adata, gene_names=ids)
    with pytest.raises(InputError, match=r"not trained with: 'b1', 'b2'; it knows 'b0', 'b9'"):
        CountStore.from_anndata(adata, batch_key="batch", batch_categories=("b0", "b9"))
    with pytest.raises(InputError, match=r"label categories 'T'; pass labels_key="):
        CountStore.from_anndata(adata, label_categories=("T",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", None, "a", "b", None, "b"], r"missing for 2 of 6 cells \(first: 'AAAC1-1'\); fill"),
        ([1.0, np.nan, 1, 1, 1, 1], r"missing for 1 of 6 cells"),
        (pd.Categorical(["a", None] * 3), r"missing for 3 of 6 cells"),
        ([0.5, 1.0, 1.5, 1.0, 1.0, 1.0], r"fractional numbers such as 0\.5; expected categories"),
        (pd.Categorical(["1", 1] * 3), r"different values with the same text"),
    ],
    ids=["None", "NaN", "categorical", "fractional", "same text"],
)
def test_columns_that_are_no_categories(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"obs\['key'\] \(batch_key\).*{message}"):
        _column(values)


def test_missing_column_lists_those_there() -> None:
    adata = read(annotated())
    with pytest.raises(
        InputError, match=r"no column 'Batch_' \(batch_key\).*'cell_type'; did you mean 'batch'"
    ):
        CountStore.from_anndata(adata, batch_key="Batch_")
    with pytest.raises(InputError, match=r"no column 'celltype' \(labels_key\).*mean 'cell_type'"):
        CountStore.from_anndata(adata, labels_key="celltype")
    del adata.obs["batch"], adata.obs["cell_type"]
    with pytest.raises(InputError, match="there are no columns"):
        CountStore.from_anndata(adata, batch_key="batch")
