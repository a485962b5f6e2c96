"""Latent positions and library sizes of cells, streamed in minibatches into given arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ... import functional
from ..._covariates import Covariates
from ..._torch import evaluating
from ...data import Minibatch, Minibatches
from ...nn import VARIANCE_FLOOR
from ...vae.steps import (
    covariates_of,
    encoder_categories,
    encoder_columns,
    encoder_covariates,
    encoder_input,
    observed_log_library,
)
from ...vae.vae import VAE
from .noise import BlockNoise, entropy_of, with_noise

DRAWS_AT_ONCE = 128
"""Draws of z that are averaged together where their mean has no closed form."""


def latent(
    module: VAE,
    batches: Minibatches,
    n_cells: int,
    *,
    give_mean: bool,
    seed: int | None,
    n_draws: int = 5000,
) -> np.ndarray:
    """Return the posterior mean of z, or one draw of z, for each cell: (N, L) float32.

    For "ln" the mean is that of `n_draws` draws.
    """
    simplex = module.latent_distribution == "ln"
    if give_mean and not simplex:
        return latent_moments(module, batches, n_cells)[0]
    result = np.empty((n_cells, module.n_latent), dtype=np.float32)
    with evaluating(module, seed):
        for rows, batch, noise in with_noise(batches, entropy_of(seed)):
            q_m, q_v = z_posterior(module, batch.x, covariates_in(module, batch))
            if give_mean:
                z = _mean_on_simplex(module, q_m, q_v, noise, n_draws)
            else:
                z = module.z_encoder.z_transformation(normal_draw(q_m, q_v, noise))
            result[rows] = z.cpu().numpy()
    return result


def latent_moments(
    module: VAE, batches: Minibatches, n_cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of the normal q(z | x) of each cell, (N, L) float32 each."""
    means, variances = (np.empty((n_cells, module.n_latent), dtype=np.float32) for _ in range(2))
    row = 0
    with evaluating(module):
        for batch in batches:
            q_m, q_v = z_posterior(module, batch.x, covariates_in(module, batch))
            _fill(means, row, q_m)
            row = _fill(variances, row, q_v)
    return means, variances


def library(
    module: VAE, batches: Minibatches, n_cells: int, *, give_mean: bool, seed: int | None
) -> np.ndarray:
    """Return the library size of each cell, (N, 1) float32: posterior mean, draw or observed.

    The observed one is the total count, also where frequencies are multiplied by a size factor.
    """
    result = np.empty((n_cells, 1), dtype=np.float32)
    with evaluating(module, seed):
        for rows, batch, noise in with_noise(batches, entropy_of(seed)):
            covariates = covariates_in(module, batch)
            if module.use_observed_lib_size:
                log_library = functional.log_library_size(batch.x)
            elif give_mean:
                q_m, q_v = library_posterior(module, batch.x, covariates)
                log_library = q_m + q_v / 2  # the mean of a log-normal
            else:
                log_library = library_draws(module, batch.x, covariates, noise)()
            result[rows] = torch.exp(log_library).cpu().numpy()
    return result


def library_moments(
    module: VAE, batches: Minibatches, n_cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of the log library size, (N, 1) float32 each.

    The variance is 0 where the library size is observed, or a size factor takes its place.
    """
    means, variances = (np.zeros((n_cells, 1), dtype=np.float32) for _ in range(2))
    row = 0
    with evaluating(module):
        for batch in batches:
            covariates = covariates_in(module, batch)
            if module.use_observed_lib_size:
                row = _fill(means, row, observed_log_library(module, batch.x, covariates))
            else:
                q_m, q_v = library_posterior(module, batch.x, covariates)
                _fill(variances, row, q_v)
                row = _fill(means, row, q_m)
    return means, variances


def _mean_on_simplex(
    module: VAE, q_m: Tensor, q_v: Tensor, noise: BlockNoise, n_draws: int
) -> Tensor:
    """Return the mean of the softmax of `n_draws` normal draws, (B, L)."""
    total, deviation = torch.zeros_like(q_m), torch.sqrt(q_v).unsqueeze(1)
    for start in range(0, n_draws, DRAWS_AT_ONCE):
        some = q_m.unsqueeze(1).expand(-1, min(DRAWS_AT_ONCE, n_draws - start), -1)
        draws = module.z_encoder.z_transformation(some + deviation * noise.normal(some))
        total += draws.sum(dim=1)
    return total / n_draws


def _fill(result: np.ndarray, row: int, values: Tensor) -> int:
    """Copy `values` to the rows of `result` from `row` on; return the next free row."""
    result[row : row + values.shape[0]] = values.cpu().numpy()
    return row + values.shape[0]


def covariates_in(module: VAE, batch: Minibatch) -> Covariates:
    """Return the covariates of a minibatch; what is drawn from it shares one check of them."""
    return covariates_of(module, batch.x, batch.batch_index, batch.y, batch.covariates)


def z_posterior(module: VAE, x: Tensor, covariates: Covariates) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the normal q(z | x), before any softmax; (B, L) each."""
    x_, told = encoder_input(module, x), encoder_covariates(module, covariates)
    q_m, q_log_v = module.z_encoder.moments(x_, *told, **encoder_columns(module, covariates, x_))
    return q_m, torch.exp(q_log_v) + VARIANCE_FLOOR


def library_posterior(module: VAE, x: Tensor, covariates: Covariates) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the normal q(log l | x), (B, 1) each."""
    x_, told = encoder_input(module, x), encoder_categories(module, module.l_encoder, covariates)
    q_m, q_log_v = module.l_encoder.moments(x_, *told, **encoder_columns(module, covariates, x_))
    return q_m, torch.exp(q_log_v) + VARIANCE_FLOOR


def normal_draw(q_m: Tensor, q_v: Tensor, noise: BlockNoise) -> Tensor:
    """Draw from N(q_m, q_v)."""
    return q_m + torch.sqrt(q_v) * noise.normal(q_m)


def library_draws(
    module: VAE, x: Tensor, covariates: Covariates, noise: BlockNoise
) -> Callable[[], Tensor]:
    """Return a function that draws the log library size (B, 1); an observed one is constant."""
    if module.use_observed_lib_size:
        observed = observed_log_library(module, x, covariates)
        return lambda: observed
    q_m, q_v = library_posterior(module, x, covariates)
    return lambda: normal_draw(q_m, q_v, noise)
