"""What is saved comes back to the last bit, and nothing half-written is left."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from count_data import TENX
from small_models import small_data

import fastvae
from fastvae import Model
from fastvae.data import read
from fastvae.errors import InputError
from fastvae.model.provenance import weights_digest

DATA = small_data()


@pytest.fixture(scope="module")
def model() -> Model:
    made = Model(DATA, batch_key="batch", labels_key="cell_type", n_latent=3, n_hidden=16)
    return made.fit(3, batch_size=32, seed=0, progress=False, device="cpu")


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    model.save(tmp_path / "run")
    return tmp_path / "run"


def test_answers_are_equal_to_the_last_bit(model: Model, saved: Path) -> None:
    found = Model.load(saved, DATA, device="cpu")
    np.testing.assert_array_equal(
        found.get_latent_representation(), model.get_latent_representation()
    )
    np.testing.assert_array_equal(
        found.get_normalized_expression(transform_batch="batch_1", return_numpy=True),
        model.get_normalized_expression(transform_batch="batch_1", return_numpy=True),
    )
    assert found.get_elbo() == model.get_elbo()
    assert found.get_marginal_ll(n_mc_samples=4) == model.get_marginal_ll(n_mc_samples=4)
    pd.testing.assert_frame_equal(found.history, model.history, check_exact=True)
    assert found.training == model.training
    assert found.is_trained
    np.testing.assert_array_equal(found.validation_cells, model.validation_cells)
    assert repr(found) == repr(model)
    assert found.gene_names == model.gene_names


@pytest.mark.parametrize(
    "options",
    [
        {"dispersion": "gene-label", "latent_distribution": "ln"},
        {"dispersion": "gene-batch", "reconstruction_loss": "nb", "n_layers": 2},
        {"use_observed_lib_size": False, "dropout_rate": 0.0},
    ],
)
def test_every_option_survives(options: dict, tmp_path: Path) -> None:
    made = Model(DATA, batch_key="batch", labels_key="cell_type", n_hidden=8, **options)
    made.fit(1, batch_size=32, seed=0, progress=False)
    made.save(tmp_path)
    found = Model.load(tmp_path, DATA)
    assert found.get_elbo() == made.get_elbo()
    assert found._setup == made._setup


def test_without_data_the_model_asks_for_them(model: Model, saved: Path) -> None:
    found = Model.load(saved)
    with pytest.raises(InputError, match=r"loaded without data; give them to this call"):
        found.get_latent_representation()
    with pytest.raises(InputError, match="loaded without data"):
        found.fit(1)
    np.testing.assert_array_equal(
        found.get_latent_representation(DATA), model.get_latent_representation()
    )
    assert "120 cells" not in repr(found)


def test_labels_are_not_asked_for_where_they_have_no_use(model: Model, saved: Path) -> None:
    bare = DATA.copy()
    del bare.obs["cell_type"]
    np.testing.assert_array_equal(
        Model.load(saved, bare).get_latent_representation(), model.get_latent_representation()
    )


def test_loaded_model_can_be_trained_further(saved: Path) -> None:
    found = Model.load(saved, DATA)
    found.fit(2, batch_size=32, progress=False)
    assert found.history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert found.training["seed"] == 0
    assert found.history["train_loss"].iloc[-1] < found.history["train_loss"].iloc[0]


def test_untrained_model_is_saved_as_such(tmp_path: Path) -> None:
    made = Model(DATA, n_hidden=8)
    state = {name: value.clone() for name, value in made.module.state_dict().items()}
    made.save(tmp_path)
    found = Model.load(tmp_path, DATA)
    assert not found.is_trained
    assert all(torch.equal(value, state[name]) for name, value in found.module.state_dict().items())


def test_loading_leaves_random_numbers_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    Model.load(saved)
    assert torch.equal(before, torch.get_rng_state())


def test_files(model: Model, saved: Path) -> None:
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["README.md", "config.json", "history.csv", "model.safetensors"]
    config = json.loads((saved / "config.json").read_text())
    assert config["data"]["gene_names"] == list(DATA.var_names)
    assert config["data"]["batch_categories"] == ["batch_0", "batch_1"]
    assert config["options"]["n_latent"] == 3
    assert config["training"]["seed"] == 0
    # A pickle could run code on loading; safetensors begins with a length and JSON.
    header = (saved / "model.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["px_r"]["shape"] == [30]


def test_overwrite(model: Model, saved: Path) -> None:
    with pytest.raises(InputError, match="already exists and is not empty"):
        model.save(saved)
    other = Model(DATA, batch_key="batch", n_hidden=8).fit(1, seed=1, progress=False)
    other.save(saved, overwrite=True)
    assert Model.load(saved, DATA).get_elbo() == other.get_elbo()


def test_latent_file(model: Model, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "latent.h5ad"
    latent = model.write_latent(path)
    found = anndata.read_h5ad(path)
    assert found.X is None
    np.testing.assert_array_equal(found.obsm["X_fastvae"], latent)
    np.testing.assert_array_equal(latent, model.get_latent_representation())
    assert list(found.obs_names) == list(DATA.obs_names)
    assert list(found.var_names) == list(DATA.var_names)
    about = found.uns["fastvae"]
    assert about["version"] == fastvae.__version__
    assert about["weights_sha256"] == weights_digest(model.module.state_dict())
    assert (about["batch_key"], about["labels_key"]) == ("batch", "cell_type")
    assert (about["seed"], about["epochs"], about["n_genes"]) == (0, 3, 30)
    assert about["options"]["n_latent"] == 3
    assert "layer" not in about
    assert found.obs["cell_type"].astype(str).tolist() == DATA.obs["cell_type"].astype(str).tolist()
    with pytest.raises(InputError, match="already exists"):
        model.write_latent(path)
    part = DATA[10:20].copy()
    model.write_latent(path, part, overwrite=True)
    found = anndata.read_h5ad(path)
    np.testing.assert_allclose(found.obsm["X_fastvae"], latent[10:20], rtol=1e-4, atol=1e-5)
    assert list(found.obs_names) == list(part.obs_names)


def test_raw_and_genome_are_remembered(tmp_path: Path) -> None:
    adata = DATA.copy()
    adata.raw = adata
    adata.X = np.log1p(adata.X.toarray() / 3)
    made = Model(adata, use_raw=True, n_hidden=8).fit(1, seed=0, progress=False)
    plain = Model(DATA, n_hidden=8).fit(1, seed=0, progress=False)
    assert made.get_elbo() == plain.get_elbo()
    made.save(tmp_path / "raw")
    assert Model.load(tmp_path / "raw").get_elbo(adata) == plain.get_elbo()

    path = TENX / "1.2.0" / "multiple_genomes.h5"
    made = Model(path, genome="hg19_chr21", n_hidden=8).fit(1, seed=0, progress=False)
    made.save(tmp_path / "genome")
    assert Model.load(tmp_path / "genome").get_elbo(path) == made.get_elbo()
    # The genome is not asked of data that have none.
    assert Model.load(tmp_path / "genome").get_elbo(read(path, genome="hg19_chr21")) == (
        made.get_elbo()
    )


def test_a_subclass_is_loaded_and_mapped_as_itself(saved: Path) -> None:
    class Mine(Model):
        """A model with a method of the user's."""

        def twice(self) -> float:
            return 2 * self.get_elbo()

    mine = Mine.load(saved, DATA)
    assert mine.twice() == 2 * Model.load(saved, DATA).get_elbo()
    query = DATA.copy()
    query.obs["batch"] = "new"
    assert isinstance(Mine.load_query(query, saved), Mine)
    assert isinstance(mine.map_query(query, max_epochs=1, progress=False), Mine)


def test_history_is_the_table_that_is_saved(saved: Path) -> None:
    found = Model.load(saved).history
    table = pd.read_csv(saved / "history.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(found, table, check_exact=True, check_dtype=False)
    assert list(found.dtypes) == [np.int64] + [np.float64] * (len(found.columns) - 1)
    found.loc[0, "train_loss"] = -1.0
    assert Model.load(saved).history["train_loss"][0] > 0
    assert Model(DATA).history.empty


def test_several_columns_and_a_layer_are_in_the_provenance(tmp_path: Path) -> None:
    adata = DATA.copy()
    adata.layers["counts"] = adata.X.copy()
    made = Model(adata, layer="counts", batch_key=["batch", "cell_type"], n_hidden=8)
    made.is_trained = True
    made.write_latent(tmp_path / "latent.h5ad")
    about = anndata.read_h5ad(tmp_path / "latent.h5ad").uns["fastvae"]
    assert list(about["batch_key"]) == ["batch", "cell_type"]
    assert about["layer"] == "counts"
    assert not {"seed", "epochs", "labels_key", "use_raw"} & set(about)
