"""Categorical and continuous covariates and size factors of `Model`, from obs to every answer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from covariate_cells import COVARIATES, SIZED, covariate_cells

from fastvae import Model
from fastvae.data import Minibatches
from fastvae.errors import InputError
from fastvae.vae.stock import stock_throughout

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")

FIT: dict[str, Any] = {"seed": 0, "progress": False, "device": "cpu", "batch_size": 32}
SMALL: dict[str, Any] = {"n_latent": 3, "n_hidden": 8, "batch_key": "batch"}
KINDS: dict[str, dict[str, Any]] = {
    "covariates": COVARIATES,
    "size factor": SIZED,
    "encoded": {**COVARIATES, "encode_covariates": True, "n_layers": 2},
    "first layer": {**SIZED, "n_layers": 2, "deeply_inject_covariates": False},
}


def made(kind: str = "covariates", data: Any = None, **options: Any) -> Model:
    data = covariate_cells() if data is None else data
    return Model(data, **{**SMALL, **KINDS[kind], **options})


@pytest.fixture(name="model", scope="module", params=KINDS)
def fixture_model(request: pytest.FixtureRequest) -> Model:
    return made(request.param).fit(2, **FIT)


def answers(model: Model, data: Any = None) -> dict[str, np.ndarray]:
    """One array of each kind of answer, a row for each cell."""
    return {
        "expression": model.get_normalized_expression(data, return_numpy=True),
        "expected counts": model.get_normalized_expression(
            data, library_size="latent", return_numpy=True
        ),
        "in a batch": model.get_normalized_expression(
            data, transform_batch=model.batch_categories[0], return_numpy=True
        ),
        "mean": model.get_likelihood_parameters(data)["mean"],
        "elbo": np.asarray(model.get_elbo(data, return_mean=False))[:, None],
        "marginal": np.asarray(model.get_marginal_ll(data, n_mc_samples=3, return_mean=False))[
            :, None
        ],
    }


def test_each_cell_is_decoded_with_its_own_covariates(model: Model) -> None:
    """Another value in some cells changes their answers, and nobody else's."""
    plain = answers(model)
    rows = np.arange(5, 120, 9)
    columns = list(SIZED) if model._setup.covariates.size_factor else list(COVARIATES)
    for option in columns:
        keys = SIZED[option]
        other = covariate_cells()
        for name in [keys] if isinstance(keys, str) else keys:
            column = other.obs.columns.get_loc(name)
            new = {"site": "y", "chip": 1.0, "mito": 4.0, "factor": 9.0}[name]
            other.obs.iloc[rows, column] = new
        for what, values in answers(model, other).items():
            differs = (values != plain[what]).any(1)
            assert not np.delete(differs, rows).any(), (option, what)
            unchanged_scale = option == "size_factor_key" and what in ("expression", "in a batch")
            assert differs[rows].any() != unchanged_scale, (option, what)


def test_expression_of_a_size_factor(model: Model) -> None:
    scale = model.get_normalized_expression(return_numpy=True)
    rate = model.get_normalized_expression(library_size="latent", return_numpy=True)
    obs = covariate_cells().obs
    sized = model._setup.covariates.size_factor is not None
    total = np.asarray(covariate_cells().X.sum(1)).ravel()
    factor = obs["factor"].to_numpy() if sized else total
    np.testing.assert_allclose(rate, scale * factor[:, None], rtol=1e-5)
    assert np.allclose(scale.sum(1), 1.0, atol=1e-5) != sized
    np.testing.assert_allclose(model.get_latent_library_size().ravel(), total, rtol=1e-6)


def test_counts_are_drawn_with_covariates(model: Model) -> None:
    counts: Any = model.posterior_predictive_sample(n_samples=60)
    mean = np.mean([one.toarray().mean() for one in counts])
    parameters = model.get_likelihood_parameters(n_samples=20, give_mean=True)
    expected = (parameters["mean"] * (1 - parameters["dropout"])).mean()
    np.testing.assert_allclose(mean, expected, rtol=0.1)


def test_populations_and_differential_expression(model: Model) -> None:
    sized = model._setup.covariates.size_factor is not None
    draws = model.get_normalized_expression(
        n_samples_overall=40, library_size="latent", return_numpy=True
    )
    assert draws.shape == (40, 30)
    if not sized:
        np.testing.assert_allclose(draws.sum(1), np.rint(draws.sum(1)), rtol=1e-4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the importance weights")
        weighted = model.get_normalized_expression(
            n_samples_overall=40,
            weights="importance",
            importance_weighting_kwargs={"n_mc_samples": 3},
            return_numpy=True,
        )
    assert np.isfinite(weighted).all()
    table = model.differential_expression(groupby="site", n_samples_overall=200)
    assert len(table) == 3 * 30
    # cells of one site, decoded as they are, have the mean of their draws
    rows = np.flatnonzero(covariate_cells().obs["site"] == "x")
    mean = model.get_normalized_expression(cells=rows, n_samples=30, return_numpy=True).mean(0)
    found = table[table["group1"] == "x"].loc[model.gene_names, "scale1"].to_numpy()
    np.testing.assert_allclose(found, mean, rtol=0.35, atol=0.01)


def test_a_saved_model_is_the_same(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["covariates"]["categorical"] == ["site", "chip"]
    assert config["data"]["covariate_categories"] == [["z", "x", "y"], ["0", "1"]]
    again = Model.load(tmp_path / "run", covariate_cells())
    assert again._setup == model._setup
    for what, values in answers(model).items():
        np.testing.assert_array_equal(answers(again)[what], values, err_msg=what)
    # fewer categories in new data keep their codes
    some = covariate_cells()[covariate_cells().obs["site"] == "x"].copy()
    some.obs["site"] = some.obs["site"].astype(str)
    few = Model.load(tmp_path / "run").get_normalized_expression(some, n_samples=20)
    rows = np.flatnonzero(covariate_cells().obs["site"] == "x")
    assert few.shape == (len(rows), 30)
    for line in (
        "categorical covariate    3 in obs['site']: 'z', 'x', 'y'",
        "continuous covariate     obs['mito']",
    ):
        assert line.split() == next(
            found.split()
            for found in run("info", tmp_path / "run").output.splitlines()
            if line.split()[:2] == found.split()[:2]
        ), line


def test_the_step_is_written_out_with_each_of_them() -> None:
    assert stock_throughout(made("covariates").module.train())
    assert stock_throughout(made("first layer", size_factor_key=None).module.train())
    assert stock_throughout(made("size factor").module.train())


def test_a_site_effect_is_learned() -> None:
    """Decoded as of another site, the genes that depend on the site change, and others do not."""
    rng = np.random.default_rng(0)
    number = np.arange(400)
    rate = np.full((400, 20), 3.0)
    rate[number % 2 == 1, :10] *= 4.0
    obs = pd.DataFrame({"site": np.array(["a", "b"])[number % 2]}, index=number.astype(str))
    adata = anndata.AnnData(rng.poisson(rate).astype(np.float32), obs)
    options: dict[str, Any] = {"n_latent": 2, "n_hidden": 16, "reconstruction_loss": "poisson"}
    model = Model(adata, categorical_covariate_keys=["site"], **options)
    model.fit(40, learning_rate=1e-2, **FIT)
    other = adata.copy()
    other.obs["site"] = "b"
    own = model.get_normalized_expression(n_samples=10, return_numpy=True)[::2]
    moved = model.get_normalized_expression(other, n_samples=10, return_numpy=True)[::2]
    ratio = (moved / own).mean(0)
    assert (ratio[:10].min() / ratio[10:].max()) > 2.0


# --- reading ---------------------------------------------------------------------------------


def stored(data: anndata.AnnData, folder: Path, kind: str) -> Any:
    if kind == "zarr":
        data.write_zarr(folder / "cells.zarr")
        return folder / "cells.zarr"
    if kind == "two files":
        names = [folder / "a.h5ad", folder / "b.h5ad"]
        data[:50].copy().write_h5ad(names[0])
        data[50:].copy().write_h5ad(names[1])
        return names
    data.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


@pytest.mark.filterwarnings("ignore:.*zarr")
@pytest.mark.parametrize("residence", ["host", "disk"])
@pytest.mark.parametrize("kind", ["h5ad", "zarr", "two files"])
def test_files_have_the_covariates_of_the_object(kind: str, residence: str, tmp_path: Path) -> None:
    data = covariate_cells()
    path = stored(data, tmp_path, kind)
    model = made("size factor", path, residence=residence)
    there, here = model._own_store(), made("size factor", data)._own_store()
    assert there.covariate_categories == here.covariate_categories
    for name, values in here.covariates.given().items():
        found = there.covariates.given()[name]
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values, err_msg=name)
    for batch in Minibatches(there, batch_size=32, shuffle=True, seed=1):
        for name, values in batch.covariates.given().items():
            np.testing.assert_array_equal(
                values.numpy(), here.covariates.given()[name][batch.cells]
            )
    model.fit(1, **FIT)
    assert np.isfinite(model.get_latent_representation()).all()


def test_training_from_a_file_is_training_from_the_object(tmp_path: Path) -> None:
    data = covariate_cells()
    path = stored(data, tmp_path, "h5ad")
    one, other = made("encoded", data).fit(2, **FIT), made("encoded", path).fit(2, **FIT)
    for name, value in one.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name]), name


def test_categories_that_a_later_file_brings(tmp_path: Path) -> None:
    data = covariate_cells()
    data.obs["site"] = data.obs["site"].astype(str)
    data.obs.loc[data.obs_names[60:], "site"] = "new"
    model = made("covariates", stored(data, tmp_path, "two files"))
    assert model._setup.covariate_categories[0] == ("x", "y", "z", "new")
    assert model.module.n_cats_per_cov == (4, 2)
    codes = model._own_store().covariates.cat_covs[:, 0]
    named = np.array(model._setup.covariate_categories[0])[codes]
    np.testing.assert_array_equal(named, data.obs["site"].to_numpy())


def change(column: str, rows: Any, value: Any) -> anndata.AnnData:
    data = covariate_cells()
    data.obs[column] = data.obs[column].astype(object)
    data.obs.iloc[rows, data.obs.columns.get_loc(column)] = value
    return data


def numbers(column: str, row: int, value: float) -> anndata.AnnData:
    data = covariate_cells()
    data.obs.iloc[row, data.obs.columns.get_loc(column)] = value
    return data


WRONG: dict[str, tuple[anndata.AnnData, dict[str, Any], str]] = {
    "no such column": (
        covariate_cells(),
        {"categorical_covariate_keys": ["sight"]},
        r"obs has no column 'sight' \(categorical_covariate_keys\)",
    ),
    "no such number": (
        covariate_cells(),
        {"continuous_covariate_keys": ["mitos"]},
        r"obs has no column 'mitos' \(continuous_covariate_keys\)",
    ),
    "no such factor": (
        covariate_cells(),
        {"size_factor_key": "size"},
        r"obs has no column 'size' \(size_factor_key\)",
    ),
    "a missing category": (
        change("site", 7, None),
        {},
        r"obs\['site'\] \(categorical_covariate_keys\) is missing for 1 of 120 cells .*cell_?7",
    ),
    "fractions as categories": (
        covariate_cells(),
        {"categorical_covariate_keys": ["mito"], "continuous_covariate_keys": None},
        r"obs\['mito'\] \(categorical_covariate_keys\) holds fractional numbers",
    ),
    "a NaN": (
        numbers("mito", 7, np.nan),
        {},
        r"obs\['mito'\] \(continuous_covariate_keys\) is missing for 1 of 120 cells .*cell_?7",
    ),
    "an infinity": (
        numbers("mito", 7, -np.inf),
        {},
        r"obs\['mito'\] \(continuous_covariate_keys\) is infinite.* in 1 of 120 .*cell_?7",
    ),
    "too large for float32": (numbers("mito", 7, 1e39), {}, "too large for float32"),
    "words as numbers": (
        covariate_cells(),
        {"continuous_covariate_keys": ["site"], "categorical_covariate_keys": None},
        r"obs\['site'\] \(continuous_covariate_keys\) has 'x', which is no number \(first in '",
    ),
    "a size factor of 0": (
        numbers("factor", 7, 0.0),
        {"size_factor_key": "factor"},
        r"obs\['factor'\] \(size_factor_key\) is not above 0 in 1 of 120 cells .*cell_?7.*, 0\)",
    ),
    "named twice": (
        covariate_cells(),
        {"continuous_covariate_keys": ["mito", "chip"]},
        "'chip' is named twice",
    ),
    "no names": (
        covariate_cells(),
        {"categorical_covariate_keys": [3]},
        "categorical_covariate_keys must be a list of names",
    ),
    "a list for the size factor": (
        covariate_cells(),
        {"size_factor_key": ["factor"]},
        "size_factor_key must be the name of a column",
    ),
    "a learned library beside size factors": (
        covariate_cells(),
        {"size_factor_key": "factor", "use_observed_lib_size": False},
        "size_factor_key takes the place of the library size",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_columns_are_refused_by_name(what: str, tmp_path: Path) -> None:
    data, options, message = WRONG[what]
    with pytest.raises(InputError, match=message):
        made("covariates", data, **options)


def test_new_data_must_have_known_categories(model: Model) -> None:
    data = change("site", 5, "moon")
    encoded = model._setup.options.encode_covariates
    if encoded:
        with pytest.raises(InputError, match=r"obs\['site'\] has covariate categories .*'moon'"):
            model.get_latent_representation(data)
    else:  # the encoder sees counts alone
        np.testing.assert_array_equal(
            model.get_latent_representation(data), model.get_latent_representation()
        )
    with pytest.raises(
        InputError, match=r"obs\['site'\] has covariate categories .*moon.*'z', 'x', 'y'"
    ):
        model.get_normalized_expression(data)
    del data.obs["mito"]
    data.obs["site"] = "x"
    with pytest.raises(InputError, match="obs has no column 'mito'"):
        model.get_elbo(data)


# --- going on, and mapping -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoded", "size factor"])
def test_resuming_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole = made(kind).fit(3, **FIT)
    made(kind).fit(2, **FIT, checkpoint_dir=tmp_path, n_epochs_kl_warmup=400)
    again = made(kind).fit(3, **FIT, checkpoint_dir=tmp_path, resume=True)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    with pytest.raises(InputError, match="SHA-256"):
        made(kind, numbers("mito", 3, 0.5)).fit(4, **FIT, checkpoint_dir=tmp_path, resume=True)
    other = made(kind, continuous_covariate_keys=None)
    with pytest.raises(InputError, match="continuous_covariate_keys"):
        other.fit(4, **FIT, checkpoint_dir=tmp_path, resume=True)


def test_a_query_leaves_the_weights_of_covariates(model: Model) -> None:
    query = covariate_cells(60, seed=1)
    query.obs["batch"] = np.array(["s1", "s2"])[np.arange(60) % 2]
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    mapped = Model.load_query(query, model)
    start = {name: value.clone() for name, value in mapped.module.state_dict().items()}
    # as the reference would answer, were the new batches the mean of its own
    known = covariate_cells(60, seed=1)
    np.testing.assert_allclose(
        mapped.get_normalized_expression(known, return_numpy=True),
        model.get_normalized_expression(known, return_numpy=True),
        rtol=1e-4,
        atol=1e-7,
    )
    mapped.fit(2, **FIT)
    n_after = 3 + 2
    moved = 0
    for name, value in mapped.module.state_dict().items():
        if value.shape == before[name].shape or name.startswith("l_encoder"):  # it is not used
            assert torch.equal(value, start[name]), name
            continue
        end = before[name].shape[1] - n_after
        assert torch.equal(value[:, :end], before[name][:, :end]), name
        assert torch.equal(value[:, end + 2 :], before[name][:, end:]), name
        assert not torch.equal(value[:, end : end + 2], start[name][:, end : end + 2]), name
        moved += 1
    assert moved
    query.obs["site"] = "moon"
    with pytest.raises(InputError, match="covariate categories"):
        Model.load_query(query, model)


# --- the command line ------------------------------------------------------------------------


def test_the_command_trains_the_same_model(tmp_path: Path) -> None:
    path = stored(covariate_cells(), tmp_path, "h5ad")
    common = ["--n-latent", 3, "--n-hidden", 8, "--batch-key", "batch", "--device", "cpu"]
    told = ["--categorical-covariate", "site", "--categorical-covariate", "chip"]
    told += ["--continuous-covariate", "mito", "--size-factor", "factor"]
    told += ["--first-layer-covariates", "--n-layers", 2]
    fit = ["--max-epochs", 2, "--batch-size", 32, "--quiet", "--no-plots"]
    folder = tmp_path / "run"
    run("train", path, "-o", folder, *common, *told, *fit)
    found = Model.load(folder)
    wanted = made("first layer").fit(2, **FIT)
    assert found._setup.covariates == wanted._setup.covariates
    for name, value in wanted.module.state_dict().items():
        assert torch.equal(value, found.module.state_dict()[name]), name
    shown = run("info", folder).output
    assert "size factor" in shown
    run("report", folder, path)
    assert "3 in obs[&#x27;site&#x27;]" in (folder / "report.html").read_text()
    again = ["-o", tmp_path / "other", *common, *fit, "--categorical-covariate"]
    wrong = run("train", path, *again, "sight", code=2)
    assert "(--categorical-covariate)" in wrong.output
    wrong = run("train", path, *again, "site", "--size-factor", "mito", code=2)
    assert "(--size-factor) is not above 0" in wrong.output
