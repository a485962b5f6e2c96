"""Models of scvi-tools as `Model`, against what scvi-tools 1.4.2 recorded; nothing of it is run."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from places import FIXTURES
from scvi_cells import SEED, make_cells
from witness import assert_parity

from fastvae import InputError, Model
from fastvae.data.covariates import CovariateKeys
from fastvae.integrations.convert import from_scvi_tools
from fastvae.integrations.convert_options import options_from, options_to

FOLDER = FIXTURES / "scvi_tools"
with np.load(FOLDER / "outputs.npz") as _file:
    RECORDED = dict(_file)
CASES = sorted(path.parent.name for path in FOLDER.glob("*/model.pt"))
COUNTS = RECORDED["counts"].astype(np.float32)

each_case = pytest.mark.parametrize("name", CASES)


def recorded(name):
    start = f"{name}/"
    return {
        key[len(start) :]: torch.from_numpy(value)
        for key, value in RECORDED.items()
        if key.startswith(start)
    }


@each_case
def test_saved_model_gives_what_scvi_tools_gave(name):
    want = recorded(name)
    model = from_scvi_tools(FOLDER / name, make_cells(COUNTS))
    cells = model._store
    x = torch.from_numpy(COUNTS)
    batch = torch.from_numpy(cells.batch_codes)[:, None]
    labels = torch.from_numpy(cells.label_codes)[:, None]
    torch.manual_seed(SEED)
    with torch.no_grad():
        found = model.module.inference(x, batch, labels)
    assert_parity(found["qz_m"], want["qz_m"], "qz_m")
    assert_parity(found["qz_v"], want["qz_v"], "qz_v")
    assert_parity(found["px_scale"], want["px_scale"], "px_scale", 1e-6)
    assert_parity(found["px_rate"], want["px_rate"], "px_rate")
    if "theta" in want:
        assert_parity(found["px_r"].expand_as(want["theta"]), want["theta"], "theta")
    if "zi_logits" in want:
        assert_parity(found["px_dropout"], want["zi_logits"], "zi_logits")
    l_mean, l_var = (
        torch.from_numpy(values.astype(np.float32))[cells.batch_codes].reshape(-1, 1)
        for values in (cells.log_library_mean, cells.log_library_var)
    )
    torch.manual_seed(SEED)  # the draws that were recorded
    with torch.no_grad():
        loss, kl, _ = model.module(x, l_mean, l_var, batch, labels)
    assert_parity(-(loss + kl), want["elbo"], "ELBO")
    if name != "labels":  # the logistic normal has no closed mean
        latent = model.get_latent_representation()
        assert_parity(torch.from_numpy(latent), want["qz_m"], "latent")


@each_case
def test_it_is_a_model_like_any_other(name, tmp_path):
    cells = make_cells(COUNTS)
    model = from_scvi_tools(FOLDER / name, cells)
    assert model.is_trained
    assert "1.4.2" in json.dumps(model.origin)
    before = model.get_elbo(return_mean=False)
    model.save(tmp_path / "run")
    again = Model.load(tmp_path / "run", cells)
    assert again.origin == model.origin
    np.testing.assert_array_equal(again.get_elbo(return_mean=False), before)
    assert again.fit(30, seed=0, batch_size=10, progress=False).get_elbo() > before.mean()


def test_codes_follow_the_order_of_scvi_tools():
    assert from_scvi_tools(FOLDER / "batches").batch_categories == ["c", "a", "b"]
    assert from_scvi_tools(FOLDER / "numbered").batch_categories == ["9", "10"]
    learned = from_scvi_tools(FOLDER / "learned")
    assert learned._setup.label_categories == ("B", "T")
    logs, donors = np.log(COUNTS.sum(1)), np.array(["b", "a", "c"])[np.arange(len(COUNTS)) % 3]
    want = [logs[donors == name].mean() for name in ("c", "a", "b")]
    np.testing.assert_allclose(learned._setup.log_library_mean, want, rtol=1e-6)


def test_dispersion_per_batch_without_batches_is_per_gene():
    model = from_scvi_tools(FOLDER / "one_batch")
    assert model._setup.options.dispersion == "gene"
    assert model.module.px_r.shape == (COUNTS.shape[1],)


def test_without_data_every_question_brings_its_own():
    model = from_scvi_tools(FOLDER / "batches")
    with pytest.raises(InputError, match="without data"):
        model.get_elbo()
    assert np.isfinite(model.get_elbo(make_cells(COUNTS)))


REFUSED = {
    "use_layer_norm": "both",
    "use_batch_norm": "none",
    "batch_representation": "embedding",
    "log_variational": False,
    "gene_likelihood": "normal",
    "var_activation": torch.nn.functional.softplus,
    "extra_decoder_kwargs": {"activation_fn": torch.nn.ELU},
    "some_new_option": 1,
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_without_counterpart_are_named(name):
    with pytest.raises(InputError, match=name):
        options_from({"n_layers": 2, name: REFUSED[name]}, 3)


def test_encoders_that_are_told_the_batch():
    options = options_from({"encode_covariates": True, "n_layers": 2}, 3)
    assert options.encode_covariates
    assert options_to(options)["encode_covariates"] is True
    assert "encode_covariates" not in options_to(options_from({}, 3))


def test_where_a_covariate_reaches_does_not_matter_where_there_is_none():
    given = {"encode_covariates": True, "deeply_inject_covariates": False}
    assert options_from(given, 1) == options_from({}, 1)
    told = options_from(given, 1, CovariateKeys(continuous=("age",)))
    assert told.encode_covariates
    assert options_to(told)["deeply_inject_covariates"] is False


def test_size_factors_take_the_place_of_a_learned_library():
    options = options_from({"use_observed_lib_size": False}, 1, CovariateKeys(size_factor="size"))
    assert options.use_observed_lib_size


def test_options_go_back_and_forth():
    options = options_from({"n_latent": 7, "gene_likelihood": "nb"}, 1)
    assert options_from(options_to(options), 1) == options


class Bomb:
    """Pickled, it would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return shutil.copyfile, (__file__, self.path)


def test_no_code_from_a_folder_is_run(tmp_path):
    content = torch.load(FOLDER / "batches" / "model.pt", weights_only=False, pickle_module=_Inert)
    content["attr_dict"]["history_"] = Bomb(tmp_path / "boom")
    (tmp_path / "model").mkdir()
    torch.save(content, tmp_path / "model" / "model.pt")
    model = from_scvi_tools(tmp_path / "model", make_cells(COUNTS))
    assert not (tmp_path / "boom").exists()
    want = recorded("batches")["qz_m"]
    assert_parity(torch.from_numpy(model.get_latent_representation()), want, "latent")


class _Inert:
    """Reads the recorded file where scvi-tools is not installed: what is missing becomes None."""

    load = staticmethod(pickle.load)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError):
                return lambda *_: None


def test_folders_of_something_else(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        from_scvi_tools(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"has 0 of them.*SCVI\.save"):
        from_scvi_tools(tmp_path)
    torch.save({"weights": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"is not a model that scvi\.model\.SCVI\.save wrote"):
        from_scvi_tools(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(InputError, match=r"model\.pt"):
        from_scvi_tools(tmp_path)
    with pytest.raises(InputError, match=r"takes a scvi\.model\.SCVI or SCANVI or the folder"):
        from_scvi_tools(3)
