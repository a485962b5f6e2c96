"""Marginal likelihood and loss of cells, streamed in minibatches."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ... import functional
from ..._torch import evaluating
from ...data import Minibatches
from ...errors import InputError
from ...vae.semi_supervised import SemiSupervisedVAE
from ...vae.steps import negative_log_likelihood, observed_log_library
from ...vae.vae import VAE
from .encode import (
    covariates_in,
    library_draws,
    library_posterior,
    normal_draw,
    z_posterior,
)
from .noise import BlockNoise, entropy_of, with_noise


def loss_of_cells(
    module: VAE, batches: Minibatches, n_cells: int, *, seed: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return reconstruction loss, -log p(x | z, l) at one draw, and KL divergence: (N,) float64.

    The KL divergence is that of z and, where the library is learned, of l.
    """
    losses = np.empty(n_cells)
    divergences = np.empty(n_cells)
    with evaluating(module, seed):
        for rows, batch, noise in with_noise(batches, entropy_of(seed)):
            covariates = covariates_in(module, batch)
            q_m, q_v = z_posterior(module, batch.x, covariates)
            z = module.z_encoder.z_transformation(normal_draw(q_m, q_v, noise))
            kl = _divergence(module, z, q_m, q_v, noise)
            log_library = library_draws(module, batch.x, covariates, noise)()
            if not module.use_observed_lib_size:
                l_m, l_v = library_posterior(module, batch.x, covariates)
                kl = kl + functional.kl_normal(l_m, l_v, batch.local_l_mean, batch.local_l_var)
            nll = negative_log_likelihood(module, batch.x, z, log_library, covariates)
            losses[rows] = nll.cpu().numpy()
            divergences[rows] = kl.cpu().numpy()
    return losses, divergences


def _divergence(module: VAE, z: Tensor, q_m: Tensor, q_v: Tensor, noise: BlockNoise) -> Tensor:
    """Return what the prior of z costs each cell (N,), where it depends on labels at a draw z."""
    if not isinstance(module, SemiSupervisedVAE):
        return functional.kl_normal(q_m, q_v)
    drawn = noise.normal(q_m.unsqueeze(1).expand(-1, module.n_labels, -1))
    difference, kl = module.prior_terms(z, q_m, q_v, drawn)
    return difference + kl


def marginal_log_likelihood(
    module: VAE, batches: Minibatches, n_cells: int, *, n_samples: int, seed: int | None
) -> np.ndarray:
    """Return log p(x) of each cell by importance sampling, (N,) float64.

    ``log mean_s exp(log p(x | z_s, l_s) + log p(z_s, l_s) - log q(z_s, l_s | x))`` with z_s and
    l_s drawn from q; the observed library is not drawn. For ``latent_distribution="ln"`` the
    densities are those of the normal before the softmax. Sums are in float64; memory does not
    grow with `n_samples`.

    Raises
    ------
    InputError
        The prior of z depends on labels and has no closed form.
    """
    if isinstance(module, SemiSupervisedVAE):
        raise InputError(
            "log p(x) (get_marginal_ll, importance weights) is not there for a model that has "
            "learned labels, whose prior of z has no closed form; get_elbo gives a bound, and "
            "weights='uniform' needs no weights"
        )
    result = np.empty(n_cells)
    learned = not module.use_observed_lib_size
    with evaluating(module, seed):
        for rows, batch, noise in with_noise(batches, entropy_of(seed)):
            covariates = covariates_in(module, batch)
            posterior = z_posterior(module, batch.x, covariates)
            if learned:
                l_posterior = library_posterior(module, batch.x, covariates)
            else:
                log_library = observed_log_library(module, batch.x, covariates)
            n_here, device = batch.x.shape[0], batch.x.device
            total = torch.full((n_here,), -math.inf, dtype=torch.float64, device=device)
            for _ in range(n_samples):
                u, log_weight = _draw(*posterior, torch.zeros(()), torch.ones(()), noise)
                z = module.z_encoder.z_transformation(u)
                if learned:
                    prior = batch.local_l_mean, batch.local_l_var
                    log_library, log_ratio = _draw(*l_posterior, *prior, noise)
                    log_weight = log_weight + log_ratio
                nll = negative_log_likelihood(module, batch.x, z, log_library, covariates)
                log_weight = log_weight - nll
                total = torch.logaddexp(total, log_weight)
            result[rows] = (total - math.log(n_samples)).cpu().numpy()
    return result


def _draw(
    q_m: Tensor, q_v: Tensor, p_m: Tensor, p_v: Tensor, noise: BlockNoise
) -> tuple[Tensor, Tensor]:
    """Return a draw from N(q_m, q_v), and log N(draw; p) - log N(draw; q), summed, (N,) float64."""
    standard = noise.normal(q_m)
    draw = q_m + torch.sqrt(q_v) * standard
    squares = standard.double() ** 2 - (draw - p_m.to(draw.device)).double() ** 2 / p_v.double()
    return draw, 0.5 * (squares + torch.log(q_v.double() / p_v.double())).sum(dim=-1)
