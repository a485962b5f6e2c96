"""The importance-sampled log p(x) against the integral done on a grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_data

from fastvae import Model

DATA = small_data(60, 8)
N_CELLS = 6


def fitted(**options: Any) -> Model:
    model = Model(DATA, batch_key="batch", n_hidden=8, **options)
    # With the full KL term q is close to the posterior, and the weights vary little.
    fit = {"learning_rate": 1e-2, "n_epochs_kl_warmup": None}
    return model.fit(60, batch_size=20, seed=0, progress=False, **fit)


def log_joint(model: Model, u: torch.Tensor, library: torch.Tensor | None) -> torch.Tensor:
    """log p(x, z | l) at each grid point (P,) and for each cell (N,).

    `u` (P, L) is the grid before any softmax; `library` (P, N) its last coordinate, or None for
    the observed one. Uses the decoder and the elementwise likelihood, not the fused operation.
    """
    module = model.module.double()
    x = torch.from_numpy(DATA.X.toarray()[:N_CELLS].astype(np.float64))
    code = torch.from_numpy(model._store.batch_codes[:N_CELLS])
    z = module.z_encoder.z_transformation(u)
    rows = []
    for n in range(N_CELLS):
        l_n = x[n].sum().clamp(min=1).log() if library is None else library[:, n]
        l_n = l_n.expand(len(u)).unsqueeze(1)
        batch = code[n].expand(len(u), 1)
        _, _, rate, dropout = module.decoder("gene", z, l_n, batch)
        nll = module.get_reconstruction_loss(
            x[n].expand(len(u), -1), rate, torch.exp(module.px_r), dropout
        )
        rows.append(-nll)
    log_p = torch.stack(rows, 1)  # (P, N)
    log_p = log_p + torch.distributions.Normal(0.0, 1.0).log_prob(u).sum(1, keepdim=True)
    module.float()
    return log_p.detach()


def axis(low: float, high: float, n: int) -> tuple[torch.Tensor, float]:
    points = torch.linspace(low, high, n, dtype=torch.float64)
    return points, float(points[1] - points[0])


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_one_latent_dimension(likelihood: str) -> None:
    model = fitted(n_latent=1, reconstruction_loss=likelihood)
    points, step = axis(-8, 8, 2001)
    exact = torch.logsumexp(log_joint(model, points.unsqueeze(1), None) + np.log(step), 0)
    cells = np.arange(N_CELLS)
    found = model.get_marginal_ll(cells=cells, n_mc_samples=2500, return_mean=False)
    np.testing.assert_allclose(found, exact.numpy(), atol=0.03)
    mean = model.get_marginal_ll(cells=cells, n_mc_samples=2500)
    assert mean == pytest.approx(found.mean(), rel=1e-12)
    elbo = np.array([model.get_elbo(cells=cells, seed=seed) for seed in range(200)])
    assert elbo.mean() < mean + 3 * elbo.std() / np.sqrt(200)


def test_logistic_normal_latent() -> None:
    model = fitted(n_latent=2, latent_distribution="ln")
    points, step = axis(-6, 6, 121)
    grid = torch.cartesian_prod(points, points)
    exact = torch.logsumexp(log_joint(model, grid, None) + 2 * np.log(step), 0)
    found = model.get_marginal_ll(cells=np.arange(N_CELLS), n_mc_samples=2500, return_mean=False)
    np.testing.assert_allclose(found, exact.numpy(), atol=0.05)


def test_learned_library() -> None:
    model = fitted(n_latent=1, use_observed_lib_size=False)
    points, step = axis(-6, 6, 161)
    unit, unit_step = axis(-6, 6, 121)
    code = model._store.batch_codes[:N_CELLS]
    mean = torch.from_numpy(model._store.log_library_mean.astype(np.float64)[code])
    sd = torch.from_numpy(np.sqrt(model._store.log_library_var.astype(np.float64))[code])
    grid = torch.cartesian_prod(points, unit)
    # The library is integrated in units of its prior's standard deviation.
    log_p = log_joint(model, grid[:, :1], mean + sd * grid[:, 1:])
    log_p = log_p + torch.distributions.Normal(0.0, 1.0).log_prob(grid[:, 1:])
    exact = torch.logsumexp(log_p + np.log(step) + np.log(unit_step), 0)
    found = model.get_marginal_ll(cells=np.arange(N_CELLS), n_mc_samples=2500, return_mean=False)
    np.testing.assert_allclose(found, exact.numpy(), atol=0.05)


def test_result_depends_little_on_the_draws() -> None:
    model = fitted(n_latent=1)
    found = [model.get_marginal_ll(n_mc_samples=500, seed=seed) for seed in (0, 1)]
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], abs=0.05)
