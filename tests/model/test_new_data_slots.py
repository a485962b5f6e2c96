"""New data may hold their counts elsewhere than the data the model was trained on."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from command_line import run
from count_data import annotated, write_mtx_folder

from fastvae import Model
from fastvae.data import read
from fastvae.errors import InputError

FIT: dict[str, Any] = {"max_epochs": 1, "seed": 0, "progress": False, "device": "cpu"}
SMALL: dict[str, Any] = {"n_latent": 2, "n_hidden": 4}


def in_x() -> anndata.AnnData:
    return annotated()


def logged(adata: anndata.AnnData) -> sp.csr_matrix:
    return sp.csr_matrix(np.log1p(adata.X.toarray()))


def in_layer(name: str = "counts") -> anndata.AnnData:
    """Log-normalised in X, counts in a layer, as a scanpy notebook leaves them."""
    adata = annotated()
    adata.layers[name] = adata.X.copy()
    adata.X = logged(adata)
    return adata


def in_raw() -> anndata.AnnData:
    adata = annotated()
    adata.raw = adata.copy()
    adata.X = logged(adata)
    return adata


PLACES = {
    "X": (in_x, {}, {"layer": "X"}),
    "layer": (in_layer, {"layer": "counts"}, {"layer": "counts"}),
    "raw": (in_raw, {"use_raw": True}, {"use_raw": True}),
}


def trained(place: str, **options: Any) -> Model:
    make, where, _ = PLACES[place]
    return Model(make(), batch_key="batch", **where, **SMALL, **options).fit(**FIT)


QUESTIONS = {
    "get_latent_representation": {},
    "get_latent_library_size": {},
    "get_normalized_expression": {"return_numpy": True},
    "get_likelihood_parameters": {},
    "posterior_predictive_sample": {},
    "get_feature_correlation_matrix": {},
    "get_elbo": {},
    "get_reconstruction_error": {},
    "get_marginal_ll": {"n_mc_samples": 2},
    "differential_expression": {"groupby": "cell_type", "n_samples_overall": 20},
}


def plain(answer: Any) -> list[np.ndarray]:
    """The numbers of any kind of answer."""
    if isinstance(answer, dict):
        return [value for part in answer.values() for value in plain(part)]
    if hasattr(answer, "select_dtypes"):
        return [answer.select_dtypes("number").to_numpy()]
    return [np.asarray(answer.toarray() if sp.issparse(answer) else answer)]


@pytest.mark.parametrize("new", PLACES)
@pytest.mark.parametrize("place", PLACES)
def test_every_question_finds_the_counts(place: str, new: str) -> None:
    model = trained(place)
    make, _, asked = PLACES[new]
    for name, options in QUESTIONS.items():
        ask = getattr(model, name)
        want, got = plain(ask(**options)), plain(ask(make(), **options, **asked))
        assert len(want) == len(got), name
        for one, other in zip(want, got, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("new", PLACES)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["object", "h5ad", "zarr", "two files"])
def test_load_query_and_files(place: str, new: str, kind: str, tmp_path: Path) -> None:
    model = trained(place)
    model.save(tmp_path / "run")
    make, _, asked = PLACES[new]
    want = model.get_latent_representation()
    data: Any = make()
    if kind == "h5ad":
        data.write_h5ad(tmp_path / "new.h5ad")
        data = tmp_path / "new.h5ad"
    elif kind == "zarr":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata announces its next format
            data.write_zarr(tmp_path / "new.zarr")
        data = tmp_path / "new.zarr"
    elif kind == "two files":
        data[:20].copy().write_h5ad(tmp_path / "a.h5ad")
        data[20:].copy().write_h5ad(tmp_path / "b.h5ad")
        data = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    loaded = Model.load(tmp_path / "run", data, device="cpu", **asked)
    np.testing.assert_allclose(loaded.get_latent_representation(), want, rtol=1e-5, atol=1e-6)
    query = Model.load_query(data, model, freeze="decoder", **asked)
    np.testing.assert_allclose(query.get_latent_representation(), want, rtol=1e-5, atol=1e-6)


def test_without_a_word_the_slot_of_the_model_is_taken() -> None:
    for place, (make, _, _) in PLACES.items():
        model = trained(place)
        want = model.get_latent_representation()
        np.testing.assert_allclose(model.get_latent_representation(make()), want, rtol=1e-5)
    # A layer that looks like counts as well is not the one.
    model = trained("layer")
    data = in_layer()
    data.layers["spliced"] = data.layers["counts"] * 2
    np.testing.assert_array_equal(
        model.get_latent_representation(data), model.get_latent_representation()
    )


@pytest.mark.parametrize("place", ["layer", "raw"])
def test_data_with_one_matrix_need_no_layer(place: str, tmp_path: Path) -> None:
    model = trained(place)
    want = model.get_latent_representation(cells=np.arange(5))
    counts = annotated().X.toarray()
    folder = write_mtx_folder(tmp_path / "tenx", counts)
    # A 10x folder has one matrix, and no batches.
    by_batch = model.differential_expression  # any question; the slot is read first
    with pytest.raises(InputError, match="obs has no column 'batch'"):
        by_batch(folder, groupby="cell_type")
    with pytest.warns(UserWarning, match=r"has no .*, where the model's counts were; its only "):
        got = model.get_latent_representation(in_x(), cells=np.arange(5))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    got = model.get_latent_representation(in_x(), cells=np.arange(5), layer="X")
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_messages_name_the_argument_that_helps() -> None:
    model = trained("X")
    with pytest.raises(InputError, match="layer 'counts' looks like counts: pass layer='counts'"):
        model.get_elbo(in_layer())
    with pytest.raises(InputError, match="raw looks like counts: pass use_raw=True"):
        model.get_elbo(in_raw())
    model = trained("layer")
    data = in_layer("umis")
    with pytest.raises(
        InputError,
        match=r"has no layers\['counts'\], where the model's counts were; layer 'umis' looks like "
        r"counts: pass layer='umis'",
    ):
        model.get_elbo(data)
    del data.layers["umis"]
    data.layers["scaled"] = data.X
    with pytest.raises(InputError, match="nothing else in it looks like counts"):
        model.get_elbo(data)
    with pytest.raises(InputError, match="exclude each other"):
        model.get_elbo(in_x(), layer="counts", use_raw=True)
    with pytest.raises(InputError, match=r"layer= says how new data are read.*give data="):
        model.get_elbo(layer="counts")
    with pytest.raises(TypeError, match="has no argument 'lay'; did you mean 'layer'"):
        model.get_elbo(in_x(), lay="counts")
    data = in_x()
    data.layers["X"] = data.X
    with pytest.raises(InputError, match="has X and also a layer named 'X'"):
        model.get_elbo(data, layer="X")


@pytest.fixture(name="runs", scope="module")
def fixture_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slots")
    for place, (make, _, _) in PLACES.items():
        trained(place).save(folder / f"run_{place}")
        make().write_h5ad(folder / f"{place}.h5ad")
    return folder


OPTIONS = {"X": ["--layer", "X"], "layer": ["--layer", "counts"], "raw": ["--use-raw"]}


@pytest.mark.parametrize("new", PLACES)
@pytest.mark.parametrize("place", PLACES)
def test_commands_find_the_counts(runs: Path, tmp_path: Path, place: str, new: str) -> None:
    model, data, where = runs / f"run_{place}", runs / f"{new}.h5ad", OPTIONS[new]
    run("embed", model, data, "-o", tmp_path / "latent.h5ad", *where)
    got = anndata.read_h5ad(tmp_path / "latent.h5ad").obsm["X_fastvae"]
    want = Model.load(model).get_latent_representation(PLACES[place][0]())
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    question = ["--groupby", "cell_type", "--n-samples", 20]
    run("de", model, data, "-o", tmp_path / "markers.csv", *question, *where)
    mapping = ["--freeze", "decoder", "--max-epochs", 1, "--quiet"]
    run("map", model, data, "-o", tmp_path / "mapped", *mapping, *where)
    shown = run("info", data, *where).output
    assert re.search(r" as counts +yes", shown)


def test_commands_word_the_advice_as_options(runs: Path, tmp_path: Path) -> None:
    commands = [
        ["embed", runs / "run_X", "DATA", "-o", tmp_path / "latent.h5ad"],
        ["de", runs / "run_X", "DATA", "-o", tmp_path / "a.csv", "--groupby", "cell_type"],
        ["map", runs / "run_X", "DATA", "-o", tmp_path / "mapped", "--freeze", "decoder"],
        ["train", "DATA", "-o", tmp_path / "run"],
        ["convert", "DATA", "-o", tmp_path / "a.zarr"],
    ]
    for name, option in (("layer", "pass --layer counts"), ("raw", "pass --use-raw")):
        data = runs / f"{name}.h5ad"
        for command in commands:
            words = [data if word == "DATA" else word for word in command]
            shown = run(*words, code=2).stderr
            assert option in shown, shown
            assert "layer=" not in shown
            assert "use_raw=" not in shown
        assert option in run("info", data).output
    shown = run("embed", runs / "run_X", data, "-o", tmp_path / "a", "--layer", "b", code=2).stderr
    assert "has no layer 'b'; there are no layers" in shown
    shown = run("info", runs / "run_X", "--layer", "counts", code=2).stderr
    assert "is a trained model" in shown


def corrected() -> anndata.AnnData:
    """Counts after ambient RNA was taken away: hardly any is a whole number."""
    adata = annotated()
    adata.X = sp.csr_matrix(np.minimum(adata.X.toarray(), 15) * np.float32(0.93))
    return adata


REFUSED = "looks log-normalised.*CellBender, SoupX, DecontX.*pass allow_fractional=True"


def test_corrected_counts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=REFUSED):
        Model(corrected(), **SMALL)
    with pytest.raises(InputError, match=REFUSED):
        read(corrected())
    assert read(corrected(), allow_fractional=True).X.max() == pytest.approx(15 * 0.93)
    model = Model(corrected(), batch_key="batch", allow_fractional=True, **SMALL).fit(**FIT)
    want = model.get_latent_representation()
    model.save(tmp_path / "run")
    again = Model.load(tmp_path / "run")  # what was allowed is saved with the model
    np.testing.assert_array_equal(again.get_latent_representation(corrected()), want)
    assert "fractions allowed" in run("info", tmp_path / "run").output
    with pytest.raises(InputError, match=REFUSED):
        again.get_elbo(corrected(), allow_fractional=False)

    strict = trained("X")
    for ask in (
        strict.get_elbo,
        lambda *a, **k: strict.map_query(*a, freeze="decoder", **FIT, **k),
    ):
        with pytest.raises(InputError, match=REFUSED):
            ask(corrected())
        ask(corrected(), allow_fractional=True)


@pytest.mark.parametrize("residence", ["host", "disk"])
def test_corrected_counts_from_files(tmp_path: Path, residence: str) -> None:
    path = tmp_path / "corrected.h5ad"
    corrected().write_h5ad(path)
    with pytest.raises(InputError, match=REFUSED):
        Model(path, residence=residence, **SMALL)
    model = Model(path, residence=residence, allow_fractional=True, **SMALL).fit(**FIT)
    whole = Model(corrected(), allow_fractional=True, **SMALL).fit(**FIT)
    np.testing.assert_allclose(
        model.get_latent_representation(corrected()),
        whole.get_latent_representation(),
        atol=0.05 if residence == "disk" else 1e-6,
    )


@pytest.mark.parametrize(
    ("value", "said"), [(-1.5, "a negative value"), (np.nan, "a NaN"), (np.inf, "an infinite")]
)
def test_fractions_allow_nothing_else(value: float, said: str) -> None:
    data = corrected()
    data.X[4, 0] = value
    with pytest.raises(InputError, match=said):
        Model(data, allow_fractional=True, **SMALL)


def test_commands_take_corrected_counts(tmp_path: Path) -> None:
    data, allow = tmp_path / "corrected.h5ad", "--allow-fractional"
    corrected().write_h5ad(data)
    small = ["--batch-key", "batch", "--n-hidden", 4, "--max-epochs", 1, "--quiet"]
    shown = run("train", data, "-o", tmp_path / "run", *small, code=2).stderr
    assert "pass --allow-fractional" in shown
    run("train", data, "-o", tmp_path / "run", *small, allow)
    run("embed", tmp_path / "run", data, "-o", tmp_path / "latent.h5ad")
    trained("X").save(tmp_path / "strict")
    shown = run("embed", tmp_path / "strict", data, "-o", tmp_path / "b.h5ad", code=2).stderr
    assert "pass --allow-fractional" in shown
    run("embed", tmp_path / "strict", data, "-o", tmp_path / "b.h5ad", allow)
    de = ["--groupby", "cell_type", "--n-samples", 20, allow]
    run("de", tmp_path / "strict", data, "-o", tmp_path / "a.csv", *de)
    mapped = ["--freeze", "decoder", "--max-epochs", 1, "--quiet", allow]
    run("map", tmp_path / "strict", data, "-o", tmp_path / "mapped", *mapped)
    assert "not whole numbers" in run("info", data, allow).output
    run("convert", data, "-o", tmp_path / "a.zarr", "--quiet", allow)
