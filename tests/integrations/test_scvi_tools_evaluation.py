"""What is computed after training through the scvi-tools door: scvi-tools' numbers, from CSR."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

scvi = pytest.importorskip("scvi")
from scvi_evaluation import CSR, DENSE, METHODS, pair, same, seen  # noqa: E402
from scvi_native import MODELS, adata, made  # noqa: E402

from fastvae.errors import InputError  # noqa: E402
from fastvae.integrations import scvi_tools as door  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata", "seen"]  # fixtures

MIXED: dict[str, Callable[[Any], Any]] = {
    "differential expression": lambda m: m.differential_expression(
        groupby="label", group1="a", group2="b", mode="change"
    )[["lfc_mean", "proba_de", "raw_mean1"]].sort_index(),
    "importance": lambda m: m.get_normalized_expression(
        n_samples_overall=20, weights="importance", n_mc_samples=3, n_mc_samples_per_pass=1,
        max_cells=30, return_numpy=True,
    ),
    "correlations": lambda m: m.get_feature_correlation_matrix(
        n_samples=2, correlation_type="pearson"
    ),
}  # fmt: skip


FAILS = {  # in scvi-tools
    ("poisson", "likelihood"),
    ("embedding, labels", "marginal in passes"),
    ("embedding, labels", "expression drawn"),
}


@pytest.mark.parametrize(
    "name",
    ["defaults", "poisson", "learned library", "covariates", "size factors", "linear",
     "embedding, labels"],
)  # fmt: skip
def test_the_numbers_are_theirs(adata: Any, seen: set[Any], name: str) -> None:
    own, other = pair(adata, **MODELS.get(name, {}))
    for label, method in METHODS.items():
        if (name, label) in FAILS:
            continue
        seen.clear()
        same(own, other, method)
        assert seen == CSR, label


@pytest.mark.parametrize("name", MIXED)
def test_who_computes_with_the_counts_gets_them_dense(
    adata: Any, seen: set[Any], name: str
) -> None:
    own, other = pair(adata)
    seen.clear()
    same(own, other, MIXED[name], rtol=2e-4)
    assert seen == (DENSE if name == "correlations" else CSR)


def test_draws_of_counts(adata: Any, seen: set[Any]) -> None:
    pytest.importorskip("sparse")
    own, other = pair(adata)
    seen.clear()
    same(own, other, lambda m: m.posterior_predictive_sample(n_samples=2).todense())
    assert seen == DENSE


ROWS: dict[str, Any] = {
    "list": [5, 3, 3, 400],
    "array": np.arange(429, 200, -3, dtype=np.int32),
    "from the end": np.array([-1, 0, -430]),
    "mask": np.arange(430) % 7 == 2,
}


@pytest.mark.parametrize("name", ROWS)
def test_any_cells_in_any_order(adata: Any, seen: set[Any], name: str) -> None:
    own, other = pair(adata)
    seen.clear()
    cells = {"indices": ROWS[name]}
    for size in (None, 1, 50):
        loaded = {**cells, "batch_size": size}
        same(own, other, lambda m, loaded=loaded: m.get_latent_representation(**loaded))
    same(own, other, lambda m: m.get_elbo(**cells, return_mean=False))
    assert seen == CSR


def _messy(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same counts with columns in reverse, an entry in two parts, and a zero that is stored."""
    parts = [[], [], []]
    starts = [0]
    for i in range(x.shape[0]):
        row = slice(x.indptr[i], x.indptr[i + 1])
        cols, values = list(x.indices[row][::-1]), list(x.data[row][::-1])
        if cols:
            cols, values = [*cols, cols[0]], [*values, 1.0]
            values[0] -= 1.0
        parts[0] += cols
        parts[1] += values
        starts.append(len(parts[0]))
    return sp.csr_matrix((parts[1], parts[0], starts), shape=x.shape)


def _long(x: Any) -> Any:
    x = x.copy()
    x.indptr, x.indices = x.indptr.astype(np.int64), x.indices.astype(np.int64)
    return x


FORMS: dict[str, Callable[[Any], Any]] = {
    "integers": lambda x: x.astype(np.int64),
    "doubles": lambda x: x.astype(np.float64),
    "messy": _messy,
    "long indices": _long,
}


@pytest.mark.parametrize("form", FORMS)
def test_counts_of_any_kind_in_other_data(adata: Any, seen: set[Any], form: str) -> None:
    own, other = pair(adata)
    query = adata[100:230].copy()
    plain = query.copy()
    query.X = FORMS[form](query.X)
    before = [part.copy() for part in (query.X.data, query.X.indices, query.X.indptr)]
    seen.clear()
    for method in ("get_latent_representation", "get_elbo"):
        mine, theirs = (
            _seeded(getattr(model, method), data) for model, data in ((own, query), (other, plain))
        )
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-6)
    assert seen == CSR
    for part, kept in zip((query.X.data, query.X.indices, query.X.indptr), before, strict=True):
        np.testing.assert_array_equal(part, kept)


def _seeded(method: Any, *args: Any) -> Any:
    torch.manual_seed(5)
    return np.asarray(method(*args))


def test_counts_are_read_as_they_are_now(adata: Any) -> None:
    own, other = pair(adata)
    own.get_latent_representation()
    for model in (own, other):
        model.adata.X.data[:] = model.adata.X.data[::-1] + 1
    same(own, other, METHODS["latent"])
    same(own, other, METHODS["elbo of each"])


@pytest.mark.parametrize("learned", [False, True])
def test_accelerated_and_copied(adata: Any, seen: set[Any], learned: bool) -> None:
    _, other = pair(adata, use_observed_lib_size=not learned)
    own = made(adata, cls=scvi.model.SCVI, use_observed_lib_size=not learned)
    own.module.load_state_dict(other.module.state_dict())
    own.module.eval()
    own.is_trained_ = True
    door.accelerate(own)
    for method in METHODS.values():
        same(own, other, method)
    assert seen == CSR
    twin = copy.deepcopy(own)
    for value in twin.module.parameters():
        value.data.mul_(0.5)
    before = own.get_latent_representation()
    assert np.abs(twin.get_latent_representation() - before).max() > 0.01


def test_scanvi(adata: Any, seen: set[Any]) -> None:
    options = {
        "setup": {"labels_key": "label", "unlabeled_category": "c"},
        "linear_classifier": True,
    }
    own, other = (made(adata.copy(), cls=c, **options) for c in (door.SCANVI, scvi.model.SCANVI))
    other.module.load_state_dict(own.module.state_dict())
    for model in (own, other):
        model.module.eval()
        model.is_trained_ = True
    for label in ("latent", "elbo of each", "reconstruction", "expression", "likelihood"):
        seen.clear()
        same(own, other, METHODS[label])
        assert seen == CSR, label
    same(own, other, lambda m: m.predict(soft=True))


class OwnMethod(door.SCVI):
    """Computes with the counts in a method that has a name of scvi-tools'."""

    def get_elbo(self, adata: Any = None) -> Any:
        loader = self._make_data_loader(adata=self._validate_anndata(adata))
        return sum(batch["X"].log1p().sum() for batch in loader)


def test_others_get_dense_counts(adata: Any) -> None:
    own = made(adata, cls=OwnMethod)
    np.testing.assert_allclose(own.get_elbo(), np.log1p(adata.X.data).sum(), rtol=1e-5)
    assert {b["X"].layout for b in own._make_data_loader(adata=adata)} == DENSE


class OwnStep(door.SCVI):
    """Computes with the counts in a method that one of scvi-tools' calls."""

    layouts: ClassVar[set[Any]] = set()

    def get_aggregated_posterior(
        self, adata: Any = None, indices: Any = None, **kwargs: Any
    ) -> Any:
        loader = self._make_data_loader(adata=adata, indices=indices)
        self.layouts.update(batch["X"].layout for batch in loader)
        return super().get_aggregated_posterior(adata, indices, **kwargs)


def test_a_step_of_ones_own_gets_dense_counts(adata: Any, seen: set[Any]) -> None:
    own = made(adata, cls=OwnStep)
    own.is_trained_ = True
    own.differential_abundance(sample_key="batch")
    assert own.layouts == DENSE
    assert seen == CSR


def test_a_failed_question_leaves_the_next_loader_dense(adata: Any) -> None:
    own = made(adata)
    own.is_trained_ = True
    with pytest.raises(TypeError):
        own.get_elbo(adata, indices=[0], no_such_option=1)
    with pytest.raises(InputError):
        own.get_elbo(adata[:, ::-1].copy())
    assert {b["X"].layout for b in own._make_data_loader(adata=adata)} == DENSE


@contextmanager
def _hooked(model: Any) -> Iterator[None]:
    model.module.decoder.register_forward_hook(lambda *_: None)
    yield


@contextmanager
def _replaced(model: Any) -> Iterator[None]:
    loss = model.module.loss
    model.module.loss = lambda *args, **kwargs: loss(*args, **kwargs)
    yield


@contextmanager
def _own_loader(model: Any) -> Iterator[None]:
    class Loader(scvi.dataloaders.AnnDataLoader):
        pass

    model._data_loader_cls = Loader
    yield


WITHOUT: dict[str, Any] = {"hook": _hooked, "loss": _replaced, "loader": _own_loader}


@pytest.mark.parametrize("name", WITHOUT)
def test_changed_models_get_dense_counts(adata: Any, seen: set[Any], name: str) -> None:
    own, other = pair(adata)
    seen.clear()
    with WITHOUT[name](own):
        same(own, other, METHODS["latent"])
        same(own, other, METHODS["elbo of each"])
    assert seen == DENSE


DATA: dict[str, Callable[[Any], Any]] = {
    "dense": lambda x: x.toarray(),
    "columns": lambda x: x.tocsc(),
}


@pytest.mark.parametrize("form", DATA)
def test_other_forms_are_loaded_by_scvi_tools(adata: Any, seen: set[Any], form: str) -> None:
    adata.X = DATA[form](adata.X)
    own, other = pair(adata)
    seen.clear()
    same(own, other, METHODS["latent"])
    assert seen == DENSE


def test_options_of_the_loader_and_a_normal_likelihood(adata: Any, seen: set[Any]) -> None:
    own, other = pair(adata)
    seen.clear()
    same(own, other, lambda m: m.get_elbo(data_loader_kwargs={"drop_last": True}))
    assert seen == DENSE
    seen.clear()
    same(own, other, lambda m: m.get_latent_representation(shuffle=True))
    assert seen == CSR
    normal = made(adata, gene_likelihood="normal")
    normal.is_trained_ = True
    seen.clear()
    normal.get_latent_representation()
    assert seen == DENSE


def test_backed_and_minified_data(adata: Any, seen: set[Any], tmp_path: Any) -> None:
    import anndata

    own, other = pair(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    seen.clear()
    expected = other.get_latent_representation()
    found = own.get_latent_representation(backed)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    assert seen == DENSE
    for model in (own, other):
        qz = model.get_latent_representation(return_dist=True)
        model.adata.obsm["qzm"], model.adata.obsm["qzv"] = qz
        model.minify_adata(use_latent_qzm_key="qzm", use_latent_qzv_key="qzv")
    same(own, other, METHODS["latent"])
    same(own, other, METHODS["expression"])


OVERALL: dict[str, dict[str, Any]] = {
    "default": {},
    "as many as cells": {"n_samples_overall": 430},
    "more than cells": {"n_samples_overall": 1000},
    "genes": {"gene_list": []},
    "batches": {"transform_batch": ["batch_0", "batch_1"], "library_size": 1e4},
    "latent library": {"library_size": "latent"},
    "list of cells": {"indices": [5, 3, 3, 400]},
    "mask of cells": {"indices": np.arange(430) % 7 == 2},
    "not averaged": {"return_mean": False, "n_samples_overall": 1000},
    "importance": {"weights": "importance", "indices": np.arange(50)},
    "importance of listed cells": {"weights": "importance", "indices": list(range(50))},
    "importance of a mask": {"weights": "importance", "indices": np.arange(430) < 50},
}


@pytest.mark.parametrize("name", OVERALL)
def test_a_frame_of_draws_from_all_cells(adata: Any, name: str) -> None:
    """The numbers are those of the array; scvi-tools fails, or names other cells than these."""
    options = {"n_samples_overall": 20, **OVERALL[name]}
    if "gene_list" in options:
        options["gene_list"] = list(adata.var_names[[3, 7]])
    if options.get("weights") == "importance":
        options.update(n_mc_samples=4, n_mc_samples_per_pass=2)
    own, other = pair(adata)
    found = {}
    for key, choice in (("asked for", False), ("by default", None), ("array", True)):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - scvi-tools draws from it
        found[key] = own.get_normalized_expression(**options, return_numpy=choice)
    for key in ("asked for", "by default"):
        frame = found[key]
        assert isinstance(frame, pd.DataFrame)
        assert list(frame.columns) == list(options.get("gene_list", adata.var_names))
        assert list(frame.index) == list(range(options["n_samples_overall"]))
        if "mask" not in name:  # of which scvi-tools counts all cells, to draw as often as it needs
            np.testing.assert_array_equal(frame.to_numpy(), found["array"])
    assert isinstance(found["array"], np.ndarray)
    if name not in ("importance of listed cells", "importance of a mask"):  # where theirs fails
        same(
            own,
            other,
            lambda m: m.get_normalized_expression(**options, return_numpy=True),
            rtol=2e-4,
        )


def test_draws_from_all_cells_are_refused_by_name(adata: Any) -> None:
    model = made(adata, gene_likelihood="poisson")
    for options, words in (
        ({"n_samples": 3}, "give one of them"),
        ({"weights": "importance"}, "does not work with gene_likelihood='poisson'"),
        ({"n_samples_overall": 0}, "n_samples_overall must be a whole number of at least 1, not 0"),
    ):
        with pytest.raises(InputError, match=words):
            model.get_normalized_expression(**{"n_samples_overall": 20, **options})
