"""Arguments by the names of scvi-tools, and what is said of names that are not known."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import small_data

from fastvae import Model
from fastvae.model.scvi_names import OTHERWISE, SAME

DATA = small_data()
FIT = {"max_epochs": 1, "seed": 0, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def model() -> Model:
    made = Model(DATA, batch_key="batch", n_hidden=8, n_latent=3)
    return made.fit(**FIT)


def test_a_model_made_and_trained_in_the_words_of_scvi_tools() -> None:
    own = Model(DATA, reconstruction_loss="nb", n_hidden=8, n_latent=3)
    own.fit(**FIT, learning_rate=3e-3)
    theirs = Model(adata=DATA, gene_likelihood="nb", n_hidden=8, n_latent=3)
    assert theirs.train(**FIT, lr=3e-3) is theirs
    assert theirs.training["settings"] == own.training["settings"]
    assert theirs.get_elbo() == own.get_elbo()


def test_answers_in_the_words_of_scvi_tools(model: Model, tmp_path: Path) -> None:
    genes = list(DATA.var_names[3:5])
    found = model.get_normalized_expression(adata=DATA, indices=[4, 2], gene_list=genes)
    own = model.get_normalized_expression(DATA, cells=[4, 2], genes=genes)
    np.testing.assert_array_equal(found, own)
    for name in ("get_latent_representation", "get_elbo", "get_marginal_ll"):
        ask = getattr(model, name)
        np.testing.assert_array_equal(ask(adata=DATA, indices=[1, 5]), ask(DATA, cells=[1, 5]))
    model.save(dir_path=tmp_path / "run")
    loaded = Model.load(dir_path=tmp_path / "run", adata=DATA)
    assert loaded.get_elbo() == model.get_elbo()
    query = DATA.copy()
    query.obs["batch"] = "new"
    mapped = Model.load_query(adata=query, reference_model=model)
    assert mapped.origin["new_batches"] == ["new"]
    assert (
        model.map_query(adata=query, lr=1e-2, **FIT).training["settings"]["learning_rate"] == 1e-2
    )


UNKNOWN: list[tuple[Callable[[Model], Any], str]] = [
    (
        lambda m: m.fit(learning_rat=1.0),
        r"Model\.fit\(\) has .*'learning_rat'; did you mean 'learn",
    ),
    (lambda m: m.train(accelerator="gpu"), r"Model\.fit\(\) has no .*'accelerator'; give device="),
    (
        lambda m: m.map_query(DATA, plan_kwargs={}),
        r"Model\.map_query\(\) has .*as arguments of fit",
    ),
    (lambda m: m.get_elbo(dataloader=[]), r"Model\.get_elbo\(\) .*; give data= and cells="),
    (lambda m: m.get_elbo(genes=["a"]), r"Model\.get_elbo\(\) has no argument 'genes'"),
    (lambda m: m.get_elbo(DATA, adata=DATA), r"Model\.get_elbo\(\): multiple values .*'data'"),
    (lambda m: m.get_elbo(data=DATA, adata=DATA), "adata and data are one argument"),
    (lambda m: m.fit(1, 2, 3, 4), r"Model\.fit\(\): too many positional arguments"),
    (lambda m: m.write_latent(), r"Model\.write_latent\(\): missing a required argument: 'path'"),
    (lambda m: Model.load(), r"Model\.load\(\): missing a required argument: 'folder'"),
    (lambda m: Model(), r"Model\(\): missing a required argument: 'data'"),
    (
        lambda m: Model(DATA, n_latents=3),
        r"Model\(\) has no argument 'n_latents'; did you mean 'n_l",
    ),
]


@pytest.mark.parametrize(("call", "message"), UNKNOWN)
def test_other_arguments_get_one_hint(
    model: Model, call: Callable[[Model], Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        call(model)


def public_methods() -> dict[str, Any]:
    members = inspect.getmembers(Model, callable)
    return {name: one for name, one in members if not name.startswith("_")} | {"Model": Model}


@pytest.mark.parametrize("name", public_methods())
def test_no_internal_name_is_shown(name: str, model: Model) -> None:
    """Neither in the help of a method nor in what is said of a wrong argument."""
    method = public_methods()[name]
    internal = [base.__name__ for base in Model.__mro__ if base not in (Model, object)]
    text = inspect.getdoc(method) if name == "Model" else pydoc.plain(pydoc.render_doc(method))
    assert text is not None
    assert not [word for word in internal if word in text.split("\n", 1)[-1]]
    bound = method if inspect.ismethod(method) or name == "Model" else getattr(model, name)
    with pytest.raises(TypeError) as caught:
        bound(no_such_argument=1)
    said = str(caught.value)
    assert not [word for word in internal if word in said]
    assert "Model" in said


def test_names_that_mean_the_same_are_of_public_arguments() -> None:
    known = set()
    for method in public_methods().values():
        known |= set(inspect.signature(method).parameters)
    assert set(SAME.values()) <= known
    assert not known & {*SAME, *OTHERWISE}


def warnings_of(call: Callable[[], Any], match: str) -> list[str]:
    """Files that the warnings are said to come from."""
    with pytest.warns(UserWarning, match=match) as caught:
        call()
    return [one.filename for one in caught if re.search(match, str(one.message))]


def test_warnings_point_at_the_line_of_the_user(model: Model, tmp_path: Path) -> None:
    rare = np.array(["rare", *["a", "b"] * 59, "a"])
    few = {"groupby": rare, "n_samples_overall": 20}
    ask = model.differential_expression
    assert warnings_of(lambda: ask(**few), "are not compared") == [__file__]
    both = {"batch_correction": True, "batchid1": "batch_0", "batchid2": ["batch_0", "batch_1"]}
    few["groupby"] = np.array(["a", "b"] * 60)
    assert warnings_of(lambda: ask(**few, **both), "have batches in common") == [__file__]
    files = []
    for name in ("one.h5ad", "two.h5ad"):
        part = DATA.copy()
        part.obs_names = [f"{cell}-{name}" for cell in part.obs_names]
        part.write_h5ad(tmp_path / name)
        files.append(tmp_path / name)
    assert warnings_of(lambda: Model(files), "trained as one batch") == [__file__]
    small = DATA.copy()
    small.obs["batch"] = ["lonely", *["other"] * 119]
    match = "lonely"
    assert warnings_of(lambda: Model(small, batch_key="batch"), match) == [__file__]
