"""Data that the scvi-tools door refuses at once, and what a NaN that comes later is laid to."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

scvi = pytest.importorskip("scvi")
from lightning.pytorch import Callback  # noqa: E402
from scvi_native import QUIET, SIZE, adata, made, same_history, train  # noqa: E402

from fastvae.errors import InputError  # noqa: E402
from fastvae.integrations import scvi_tools as door  # noqa: E402
from fastvae.train import NonFiniteError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata"]  # a fixture

COLUMNS: dict[str, tuple[str, str, Any, str]] = {
    "covariate nan": ("continuous_covariate_keys", "age", np.nan, "is nan for cell"),
    "covariate inf": ("continuous_covariate_keys", "age", np.inf, "is inf for cell"),
    "covariate beyond float32": ("continuous_covariate_keys", "age", 1e39, "is inf for cell"),
    "size factor nan": ("size_factor_key", "size", np.nan, "is nan for cell"),
    "size factor -inf": ("size_factor_key", "size", -np.inf, "is -inf for cell"),
    "size factor negative": ("size_factor_key", "size", -0.5, "is -0.5 for cell"),
    "batch missing": ("batch_key", "batch", None, "is missing for 1 of 430 cells"),
    "label missing": ("labels_key", "label", None, "is missing for 1 of 430 cells"),
    "category missing": (
        "categorical_covariate_keys",
        "donor",
        None,
        "is missing for 1 of 430 cells",
    ),
}


def spoilt(data: Any, name: str) -> dict[str, Any]:
    """Put the value of case `name` into cell 7; return the arguments of setup_anndata."""
    option, key, value, _ = COLUMNS[name]
    column = data.obs[key].astype(object if value is None else float)
    column.iloc[7] = value
    data.obs[key] = column
    return {option: [key] if option.endswith("_keys") else key}


@pytest.mark.parametrize("name", COLUMNS)
def test_setup_names_the_column_and_the_cell(adata: Any, name: str) -> None:
    option, key, _, problem = COLUMNS[name]
    cell = adata.obs_names[7]
    setup = spoilt(adata, name)
    with pytest.raises(InputError) as caught:
        door.SCVI.setup_anndata(adata, **setup)
    assert str(caught.value).startswith(f"obs['{key}'] ({option}) {problem}")
    assert repr(cell) in str(caught.value)


@pytest.mark.parametrize("name", COLUMNS)
def test_new_data_is_looked_at_as_well(adata: Any, name: str) -> None:
    option, key, _, problem = COLUMNS[name]
    new = adata.copy()
    setup = spoilt(new, name)
    model = train(made(adata, setup), epochs=1)
    with pytest.raises(InputError) as caught:
        model.get_latent_representation(new)
    assert str(caught.value).startswith(f"obs['{key}'] ({option}) {problem}")


@pytest.mark.parametrize("loop", ["lightning", "fastvae"])
@pytest.mark.parametrize("kind", ["class", "accelerated"])
@pytest.mark.parametrize("what", ["size factor", "covariate"])
def test_what_was_spoilt_since_is_found_before_the_first_step(
    adata: Any, loop: str, kind: str, what: str
) -> None:
    """So is it with scvi-tools' own setup_anndata: one NaN stops the training."""
    cls = door.SCVI if kind == "class" else scvi.model.SCVI
    setup = {"size_factor_key": "size", "continuous_covariate_keys": ["age"]}
    model = door.accelerate(made(adata, setup, cls=cls))
    if what == "size factor":
        adata.obs.loc[adata.obs_names[7], "size"] = np.nan
    else:
        adata.obsm["_scvi_extra_continuous_covs"].iloc[7, 0] = np.nan
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    key = {"size factor": "size", "covariate": "age"}[what]
    with pytest.raises(InputError, match=rf"obs\['{key}'\] .* nan for cell '{adata.obs_names[7]}'"):
        train(model, loop if kind == "class" else None)
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "layer"])
@pytest.mark.parametrize("value", [-3.0, np.nan, np.inf])
def test_counts_are_named(adata: Any, form: str, value: float) -> None:
    x = adata.X.astype(np.float32).tolil()
    x[7, 3] = value
    x = {"csc": x.tocsc(), "dense": x.toarray()}.get(form, x.tocsr())
    setup = {}
    if form == "layer":
        adata.layers["raw"] = x
        setup = {"layer": "raw"}
    else:
        adata.X = x
    slot = r"layers\['raw'\]" if form == "layer" else "X"
    where = (
        rf"{slot} of .* {value:g} at cell '{adata.obs_names[7]}' \(row 7\), gene '.*' \(column 3"
    )
    for loop in ("lightning", "fastvae"):
        with pytest.raises(InputError, match=where):
            train(made(adata.copy(), setup), loop)
    good = adata.copy()
    good.X = np.ones(good.shape, dtype=np.float32)
    good.layers["raw"] = good.X
    with pytest.raises(InputError, match=where):
        train(made(good, setup), epochs=1).get_latent_representation(adata)


def test_semi_supervised_data_is_looked_at(adata: Any) -> None:
    setup = {"labels_key": "label", "unlabeled_category": "c", "size_factor_key": "size"}
    model = made(adata, setup, cls=door.SCANVI)
    adata.obs.loc[adata.obs_names[7], "size"] = np.nan
    with pytest.raises(InputError, match=r"obs\['size'\] \(size_factor_key\) is nan for cell"):
        model.train(1, **QUIET)


def test_values_are_no_counts_under_the_normal_likelihood(adata: Any) -> None:
    adata.X = adata.X.toarray() - 1.0
    options = {"gene_likelihood": "normal", "log_variational": False}
    model = train(made(adata.copy(), **options), None, epochs=1)
    assert np.isfinite(model.get_latent_representation(adata)).all()
    adata.X[7, 3] = np.nan
    with pytest.raises(InputError, match="nan at cell"):
        train(made(adata, **options), None, epochs=1)


def test_a_size_factor_of_zero_trains_as_with_theirs(adata: Any) -> None:
    """Their mean of that cell is 0 and their loss adds 1e-8 to it."""
    adata.obs.loc[adata.obs_names[7], "size"] = 0.0
    setup = {"size_factor_key": "size"}
    own, other = (
        train(made(adata.copy(), setup, cls=cls), None, epochs=2)
        for cls in (door.SCVI, scvi.model.SCVI)
    )
    same_history(own, other, rtol=1e-2)


class Bare(scvi.dataloaders.DataSplitter):
    """Somebody's data module: nothing says where its numbers come from."""

    def __init__(self, manager: Any, spoil: Any) -> None:
        super().__init__(manager, batch_size=SIZE)
        self.n_vars, self.n_batch = manager.adata.n_vars, manager.summary_stats.n_batch
        self.n_continuous_cov = 1
        self._manager, self._spoil = manager, spoil

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        batches = list(loader)
        del self.adata_manager
        self._spoil(batches[1])
        return torch.utils.data.DataLoader(batches, batch_size=None)


SPOIL = {
    "count": ("X", "a count"),
    "covariate": ("extra_continuous_covs", "a continuous covariate"),
    "size factor": ("size_factor", "the size factor"),
}


@pytest.mark.parametrize("name", SPOIL)
def test_a_nan_that_nobody_could_see_before_is_blamed_first(adata: Any, name: str) -> None:
    key, what = SPOIL[name]
    made(adata, {"continuous_covariate_keys": ["age"], "size_factor_key": "size"})
    manager = door.SCVI._get_most_recent_anndata_manager(adata)

    def spoil(batch: Any) -> None:
        batch[key][5, 0] = torch.nan

    model = door.SCVI(n_latent=4, use_size_factor_key=name == "size factor")
    row = SIZE + 5
    with pytest.raises(NonFiniteError) as caught:
        model.train(max_epochs=2, datamodule=Bare(manager, spoil), **QUIET)
    text = str(caught.value)
    assert f"epoch 1: {what} of row {row} of what the data module hands out is not finite" in text
    assert "Correct that number in the data, or drop the cell" in text
    assert "lr" not in text


def test_a_backed_file_is_blamed_by_cell(adata: Any, tmp_path: Any) -> None:
    x = adata.X.toarray().astype(np.float32)
    x[7, 3] = np.nan
    adata.X = x
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    cell = adata.obs_names[7]
    with pytest.raises(NonFiniteError, match=rf"a count of cell '{cell}' \(row 7\) is not finite"):
        train(made(backed), "lightning", train_size=1.0)


WILD: dict[str, dict[str, Any]] = {
    "SCVI": {"lr": 1e18},
    "logged steps": {"lr": 1e18, "on_step": True},
    "SCANVI": {"lr": np.inf},  # the only step; in a second one scvi-tools' own checks would stop it
}


@pytest.mark.parametrize("kind", WILD)
def test_weights_that_are_no_numbers_end_the_training(adata: Any, kind: str) -> None:
    """Also where scvi-tools' own checks are not reached, and the last good weights are back."""
    options: dict[str, Any] = {**QUIET, "plan_kwargs": {**WILD[kind], "weight_decay": 0.0}}
    if kind == "SCANVI":
        model = made(adata, {"labels_key": "label", "unlabeled_category": "c"}, cls=door.SCANVI)
        options.update(max_epochs=1, batch_size=1000)
    else:
        model = made(adata, batch_representation="embedding")
        options.update(max_epochs=30)
    parameters = dict(model.module.named_parameters())
    with pytest.raises(NonFiniteError, match="Try a lower lr in plan_kwargs"):
        model.train(**options)
    assert all(one is parameters[name] for name, one in model.module.named_parameters())
    assert all(bool(one.isfinite().all()) for one in parameters.values())


def test_the_weights_of_the_epoch_before_come_back(adata: Any) -> None:
    """The copy is of the beginning of the epoch that fails, whichever that is."""
    kept: dict[str, torch.Tensor] = {}

    class Spoil(Callback):
        def on_train_epoch_start(self, trainer: Any, plan: Any) -> None:
            kept.update({name: v.clone() for name, v in plan.module.state_dict().items()})

        def on_train_batch_end(self, trainer: Any, plan: Any, *_: Any) -> None:
            if trainer.current_epoch == 3:
                plan.module.px_r.data[0] = torch.nan

    model = made(adata)
    with pytest.raises(NonFiniteError, match="epoch 4"):
        model.train(**{**QUIET, "max_epochs": 6}, callbacks=[Spoil()])
    now = model.module.state_dict()
    assert all(torch.equal(now[name], value) for name, value in kept.items())


def test_weights_that_were_no_numbers_before_are_named(adata: Any) -> None:
    model = made(adata)
    with torch.no_grad():
        model.module.px_r[3] = torch.nan
    with pytest.raises(NonFiniteError, match="px_r, before a step of this epoch, is not finite"):
        train(model, "lightning")


GENES: dict[str, tuple[Any, str]] = {
    "other order": (
        lambda a: a[:, ::-1],
        r"its genes are in another order .*: gene 0 is '{last}' and should be '{first}'; "
        r"use adata\[:, model.adata.var_names\].copy\(\)",
    ),
    "two swapped": (
        lambda a: a[:, [0, 1, 2, 4, 3, *range(5, a.n_vars)]],
        "gene 3 is '{four}' and should be '{three}'",
    ),
    "more": (
        lambda a: anndata.concat(
            [a, anndata.AnnData(np.ones((a.n_obs, 1)), a.obs, pd.DataFrame(index=["new"]))],
            axis=1,
            merge="same",
        ),
        "was not trained with 1 of its genes: 'new'; use adata",
    ),
    "missing": (
        lambda a: a[:, 1:],
        r"1 of the model's 50 genes are not in the AnnData object: '{first}'.* "
        r"SCVI.prepare_query_anndata\(adata, model\)",
    ),
    "one renamed": (
        lambda a: renamed(a, ["other", *a.var_names[1:]]),
        "1 of the model's 50 genes are not in the AnnData object: '{first}'",
    ),
    "all renamed": (
        lambda a: renamed(a, [f"ENSG{i}" for i in range(a.n_vars)]),
        "in the same order: adata.var_names = model.adata.var_names",
    ),
}


def renamed(data: Any, names: list[str]) -> Any:
    data = data.copy()
    data.var_names = names
    return data


METHODS: dict[str, Any] = {
    "latent": lambda m, a: m.get_latent_representation(a),
    "elbo": lambda m, a: m.get_elbo(a),
    "reconstruction": lambda m, a: m.get_reconstruction_error(a),
    "marginal": lambda m, a: m.get_marginal_ll(a, n_mc_samples=2),
    "expression": lambda m, a: m.get_normalized_expression(a),
    "likelihood": lambda m, a: m.get_likelihood_parameters(a),
    "library": lambda m, a: m.get_latent_library_size(a, give_mean=False),
    "samples": lambda m, a: m.posterior_predictive_sample(a),
    "correlation": lambda m, a: m.get_feature_correlation_matrix(a, n_samples=2),
    "differences": lambda m, a: m.differential_expression(a, groupby="label", group1="a"),
    "another adata": lambda m, a: setattr(m, "adata", a),
}


@pytest.mark.parametrize("name", GENES)
@pytest.mark.parametrize("kind", ["SCVI", "LinearSCVI", "SCANVI", "accelerated", "without data"])
def test_other_genes_are_refused_by_name(adata: Any, kind: str, name: str, tmp_path: Any) -> None:
    change, expected = GENES[name]
    names = adata.var_names
    words = {"first": names[0], "last": names[-1], "three": names[3], "four": names[4]}
    new = change(adata).copy()
    own = getattr(door, kind, door.SCVI)
    if kind == "SCANVI":
        model = made(adata, {"labels_key": "label", "unlabeled_category": "c"}, cls=own)
    elif kind == "accelerated":
        model = door.accelerate(made(adata, cls=scvi.model.SCVI))
    else:
        model = made(adata, cls=own)
    model.is_trained_ = True
    if kind == "without data":
        model.save(tmp_path / "model")
        model = own.load(tmp_path / "model", adata=False)
    with pytest.raises(InputError, match=expected.format(**words)):
        model.get_latent_representation(new)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_looks_at_the_genes(adata: Any, method: str) -> None:
    new = adata[:, ::-1].copy()
    model = train(made(adata, {"labels_key": "label"}), epochs=1)
    with pytest.raises(InputError, match="in another order"):
        METHODS[method](model, new)


def test_what_the_messages_say_mends_it(adata: Any) -> None:
    model = train(made(adata), epochs=1)
    expected = model.get_latent_representation()
    for change in ("other order", "more"):
        new = GENES[change][0](adata).copy()
        mended = new[:, model.adata.var_names].copy()
        np.testing.assert_array_equal(model.get_latent_representation(mended), expected)
    new = adata[:, 1:].copy()
    scvi.model.SCVI.prepare_query_anndata(new, model)
    adata.X[:, 0] = 0
    np.testing.assert_allclose(
        model.get_latent_representation(new), model.get_latent_representation(adata), atol=1e-6
    )


def test_genes_that_the_user_renamed_are_the_models(adata: Any, tmp_path: Any) -> None:
    model = train(made(adata), epochs=1)
    expected = model.get_latent_representation()
    names = [f"ENSG{i}" for i in range(adata.n_vars)]
    model.adata.var_names = names
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    np.testing.assert_array_equal(model.get_latent_representation(adata.copy()), expected)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = door.SCVI.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.get_latent_representation(), expected)


@pytest.mark.parametrize("way", ["load", "load_query_data"])
def test_loading_refuses_another_order(adata: Any, way: str, tmp_path: Any) -> None:
    model = train(made(adata), epochs=1)
    expected = model.get_latent_representation()
    model.save(tmp_path / "model")
    folder = str(tmp_path / "model")
    load = {
        "load": lambda new: door.SCVI.load(folder, adata=new),
        "load_query_data": lambda new: door.SCVI.load_query_data(new, folder),
    }[way]
    for change, words in (("other order", "in another order"), ("missing", "are not in the Ann")):
        new = GENES[change][0](adata).copy()
        with pytest.raises(InputError, match=rf"{words}.*prepare_query_anndata\(adata, reference"):
            load(new)
    new = adata[:, ::-1].copy()
    door.SCVI.prepare_query_anndata(new, folder)
    loaded = door.SCVI.load(folder, adata=new)
    np.testing.assert_array_equal(loaded.get_latent_representation(), expected)
