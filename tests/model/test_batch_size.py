"""No answer depends on how many cells are computed together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from small_models import small_data

from fastvae import Model

DATA = small_data(150)  # three blocks of cells, the last one short

QUESTIONS: dict[str, Callable[[Model, int], Any]] = {
    "latent mean": lambda m, n: m.get_latent_representation(batch_size=n, mc_samples=300),
    "latent draw": lambda m, n: m.get_latent_representation(give_mean=False, batch_size=n),
    "latent variance": lambda m, n: m.get_latent_representation(return_dist=True, batch_size=n)[1],
    "library draw": lambda m, n: m.get_latent_library_size(give_mean=False, batch_size=n),
    "expression": lambda m, n: m.get_normalized_expression(batch_size=n, return_numpy=True),
    "expression, 3 draws": lambda m, n: m.get_normalized_expression(
        n_samples=3, return_mean=False, library_size="latent", batch_size=n
    ),
    "expression, mean of draws": lambda m, n: m.get_normalized_expression(
        n_samples=3, transform_batch=["batch_0", "batch_1"], batch_size=n, return_numpy=True
    ),
    "elbo": lambda m, n: m.get_elbo(return_mean=False, batch_size=n),
    "reconstruction error": lambda m, n: m.get_reconstruction_error(
        return_mean=False, batch_size=n
    ),
    "marginal": lambda m, n: m.get_marginal_ll(n_mc_samples=5, return_mean=False, batch_size=n),
    "parameters": lambda m, n: m.get_likelihood_parameters(n_samples=2, batch_size=n)["mean"],
    "counts": lambda m, n: m.posterior_predictive_sample(n_samples=2, batch_size=n)[1],
    "correlation": lambda m, n: m.get_feature_correlation_matrix(
        n_samples=3, correlation_type="pearson", batch_size=n
    ).to_numpy(),
    "differential": lambda m, n: (
        m.differential_expression(groupby="batch", n_samples_overall=200, batch_size=n)["lfc_mean"]
        .sort_index()
        .to_numpy()
    ),
}


@pytest.fixture(scope="module", params=["observed library", "learned library, simplex"])
def model(request: pytest.FixtureRequest) -> Model:
    learned = request.param != "observed library"
    made = Model(
        DATA,
        batch_key="batch",
        n_latent=3,
        n_hidden=16,
        use_observed_lib_size=not learned,
        latent_distribution="ln" if learned else "normal",
    )
    return made.fit(4, batch_size=32, seed=0, progress=False, learning_rate=5e-3, device="cpu")


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_do_not_depend_on_the_minibatches(model: Model, question: str) -> None:
    ask = QUESTIONS[question]
    whole = ask(model, 512)
    for batch_size in (1, 64, 100):
        part = ask(model, batch_size)
        if sp.issparse(whole):
            # a count may differ by one where its rate differs in the last digit
            assert np.mean((whole != part).toarray()) < 1e-3
        else:
            np.testing.assert_allclose(part, whole, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("question", ["latent draw", "expression", "elbo", "library draw"])
def test_blocks_have_noise_of_their_own(model: Model, question: str) -> None:
    """The same cell asked for twice, a block apart, is drawn twice."""
    if question == "library draw" and model.module.use_observed_lib_size:
        pytest.skip("the library size is not drawn")
    cells = np.repeat(7, 128)
    answers = {
        "latent draw": lambda: model.get_latent_representation(cells=cells, give_mean=False),
        "expression": lambda: model.get_normalized_expression(cells=cells, return_numpy=True),
        "elbo": lambda: model.get_elbo(cells=cells, return_mean=False)[:, None],
        "library draw": lambda: model.get_latent_library_size(cells=cells, give_mean=False),
    }
    found = answers[question]()
    assert len(np.unique(found[:, 0])) > 120
