"""Batches that a model does not know, and batches of hardly any cells."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from command_line import run
from count_data import annotated

from fastvae import Model
from fastvae.errors import InputError

FIT: dict[str, Any] = {"max_epochs": 2, "seed": 0, "progress": False, "device": "cpu"}
SMALL: dict[str, Any] = {"n_latent": 2, "n_hidden": 4}


def trained(**options: Any) -> Model:
    return Model(annotated(), batch_key="batch", **SMALL, **options).fit(**FIT)


def renamed() -> anndata.AnnData:
    """The same cells, two of the three batches under new names."""
    adata = annotated()
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories({"b1": "new1", "b2": "new2"})
    return adata


UNKNOWN = (
    r"obs\['batch'\] has batch categories that the model was not trained with: 'new1', 'new2'; "
    r"it knows 'b0', 'b1', 'b2'\. .* or map these data onto the model \(Model\.map_query\)"
)


def without_column() -> anndata.AnnData:
    adata = annotated()
    del adata.obs["batch"]
    return adata


def with_gaps() -> anndata.AnnData:
    adata = annotated()
    adata.obs["batch"] = adata.obs["batch"].where(np.arange(adata.n_obs) > 3)
    return adata


@pytest.mark.parametrize("change", [renamed, without_column, with_gaps])
@pytest.mark.parametrize("learned", [False, True])
def test_latent_positions_need_no_known_batch(change: Any, learned: bool) -> None:
    model = trained(use_observed_lib_size=not learned)
    got = model.get_latent_representation(change())
    np.testing.assert_array_equal(got, model.get_latent_representation())
    draws = model.get_latent_representation(change(), give_mean=False, seed=1)
    np.testing.assert_array_equal(draws, model.get_latent_representation(give_mean=False, seed=1))


@pytest.mark.parametrize("files", [1, 2])
def test_embed_needs_no_known_batch(tmp_path: Path, files: int) -> None:
    model = trained()
    model.save(tmp_path / "run")
    data = [tmp_path / f"{number}.h5ad" for number in range(files)]
    for number, path in enumerate(data):
        renamed()[number::files].copy().write_h5ad(path)
    run("embed", tmp_path / "run", *data, "-o", tmp_path / "latent.h5ad")
    latent = anndata.read_h5ad(tmp_path / "latent.h5ad")
    order = np.concatenate([np.arange(annotated().n_obs)[number::files] for number in range(files)])
    want = model.get_latent_representation()[order]
    np.testing.assert_allclose(latent.obsm["X_fastvae"], want, rtol=1e-5, atol=1e-6)
    assert set(latent.obs["batch"]) == {"b0", "new1", "new2"}  # as the data have them


QUESTIONS: dict[str, dict[str, Any]] = {
    "get_latent_library_size": {},
    "get_normalized_expression": {},
    "get_likelihood_parameters": {},
    "posterior_predictive_sample": {},
    "get_feature_correlation_matrix": {},
    "get_elbo": {},
    "get_reconstruction_error": {},
    "get_marginal_ll": {},
    "differential_expression": {"groupby": "cell_type"},
}


def test_what_needs_the_batch_names_it_and_the_way_out(tmp_path: Path) -> None:
    model = trained()
    for name, options in QUESTIONS.items():
        with pytest.raises(InputError, match=UNKNOWN):
            getattr(model, name)(renamed(), **options)
    told = trained(encode_covariates=True)  # its encoder needs the batch
    with pytest.raises(InputError, match=UNKNOWN):
        told.get_latent_representation(renamed())
    # The way out is one.
    mapped = model.map_query(renamed(), **FIT)
    assert np.isfinite(mapped.get_elbo())
    assert mapped.batch_categories == ["b0", "b1", "b2", "new1", "new2"]

    told.save(tmp_path / "told")
    renamed().write_h5ad(tmp_path / "new.h5ad")
    words = ["embed", tmp_path / "told", tmp_path / "new.h5ad", "-o", tmp_path / "latent.h5ad"]
    shown = run(*words, code=2).stderr
    assert "'new1', 'new2'" in shown
    assert "map these data onto the model (fastvae map)" in shown
    words = ["de", tmp_path / "told", tmp_path / "new.h5ad", "-o", tmp_path / "a.csv"]
    assert "(fastvae map)" in run(*words, "--groupby", "cell_type", code=2).stderr


def lonely(*sizes: int) -> anndata.AnnData:
    adata = annotated()
    names = [name for name, size in zip("xyz", sizes, strict=True) for _ in range(size)]
    adata.obs["batch"] = [*names, *["rest"] * (adata.n_obs - len(names))]
    return adata


SAID = r"batches of obs\['batch'\] with fewer than 3 cells: 'x' \(1 cell\), 'y' \(2 cells\); what"


@pytest.mark.filterwarnings("default:batches of obs")
def test_batches_of_hardly_any_cells_are_named_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=SAID) as caught:
        model = Model(lonely(1, 2, 3), batch_key="batch", **SMALL).fit(**FIT)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is not said again
        assert np.isfinite(model.get_elbo(lonely(1, 2, 3)))
        Model(lonely(3, 3, 3), batch_key="batch", **SMALL)

    with pytest.warns(UserWarning, match=SAID):
        Model.load_query(lonely(1, 2, 3), trained(), freeze="decoder")
    lonely(1, 2, 3).write_h5ad(tmp_path / "a.h5ad")
    for residence in ("host", "disk"):
        with pytest.warns(UserWarning, match=SAID):
            Model(tmp_path / "a.h5ad", batch_key="batch", residence=residence, **SMALL)
    small = ["--batch-key", "batch", "--n-hidden", 4, "--max-epochs", 1, "--quiet"]
    shown = run("train", tmp_path / "a.h5ad", "-o", tmp_path / "run", *small).stderr
    assert shown.count("fewer than 3 cells: 'x' (1 cell), 'y' (2 cells)") == 1
