"""Answers of a trained model, streamed in minibatches into arrays made beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .. import functional
from .._vae.fused import negative_log_likelihood
from .._vae.parts import decoder_batch
from ..data import Minibatch, Minibatches
from ..train.step import evaluating
from ..vae import VAE
from .draws import (
    BlockNoise,
    entropy_of,
    library_draws,
    library_posterior,
    normal_draw,
    with_noise,
    z_posterior,
)

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
    """Posterior mean of z, or one draw of it, for each cell: (N, L) float32.

    For "ln" the mean is that of `n_draws` draws.
    """
    simplex = module.latent_distribution == "ln"
    if give_mean and not simplex:
        return latent_moments(module, batches, n_cells)[0]
    result = np.empty((n_cells, module.n_latent), dtype=np.float32)
    with evaluating(module, seed):
        for rows, batch, noise in with_noise(batches, entropy_of(seed)):
            q_m, q_v = z_posterior(module, batch)
            if give_mean:
                z = _mean_on_simplex(module, q_m, q_v, noise, n_draws)
            else:
                z = module.z_encoder.z_transformation(normal_draw(q_m, q_v, noise))
            result[rows] = z.cpu().numpy()
    return result


def latent_moments(
    module: VAE, batches: Minibatches, n_cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the normal q(z | x) of each cell, (N, L) float32 each."""
    means, variances = (np.empty((n_cells, module.n_latent), dtype=np.float32) for _ in range(2))
    row = 0
    with evaluating(module):
        for batch in batches:
            q_m, q_v = z_posterior(module, batch)
            _fill(means, row, q_m)
            row = _fill(variances, row, q_v)
    return means, variances


def library(
    module: VAE, batches: Minibatches, n_cells: int, *, give_mean: bool, seed: int | None
) -> np.ndarray:
    """Library size of each cell (N, 1) float32: posterior mean, or a draw, or what is observed."""
    result = np.empty((n_cells, 1), dtype=np.float32)
    with evaluating(module, seed):
        for rows, batch, noise in with_noise(batches, entropy_of(seed)):
            if give_mean and not module.use_observed_lib_size:
                q_m, q_v = library_posterior(module, batch)
                log_library = q_m + q_v / 2  # the mean of a log-normal
            else:
                log_library = library_draws(module, batch, noise)()
            result[rows] = torch.exp(log_library).cpu().numpy()
    return result


def library_moments(
    module: VAE, batches: Minibatches, n_cells: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the log library size, (N, 1) float32 each; 0 where it is observed."""
    means, variances = (np.zeros((n_cells, 1), dtype=np.float32) for _ in range(2))
    row = 0
    with evaluating(module):
        for batch in batches:
            if module.use_observed_lib_size:
                row = _fill(means, row, functional.log_library_size(batch.x))
            else:
                q_m, q_v = library_posterior(module, batch)
                _fill(variances, row, q_v)
                row = _fill(means, row, q_m)
    return means, variances


def loss_of_cells(
    module: VAE, batches: Minibatches, n_cells: int, *, seed: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Reconstruction loss, -log p(x | z, l) at one draw, and KL divergence; (N,) float64 each.

    The KL divergence is that of z and, where the library is learned, of l.
    """
    losses = np.empty(n_cells)
    divergences = np.empty(n_cells)
    with evaluating(module, seed):
        for rows, batch, noise in with_noise(batches, entropy_of(seed)):
            q_m, q_v = z_posterior(module, batch)
            z = module.z_encoder.z_transformation(normal_draw(q_m, q_v, noise))
            kl = functional.kl_normal(q_m, q_v)
            log_library = library_draws(module, batch, noise)()
            if not module.use_observed_lib_size:
                l_m, l_v = library_posterior(module, batch)
                kl = kl + functional.kl_normal(l_m, l_v, batch.local_l_mean, batch.local_l_var)
            nll = negative_log_likelihood(
                module, batch.x, z, log_library, batch.batch_index, batch.y
            )
            losses[rows] = nll.cpu().numpy()
            divergences[rows] = kl.cpu().numpy()
    return losses, divergences


def expression(
    module: VAE,
    batches: Minibatches,
    result: np.ndarray,
    *,
    n_samples: int,
    genes: Tensor | None,
    batch_codes: Sequence[int | None],
    library_size: float | None,
    seed: int | None,
) -> None:
    """Fill `result` with decoded expression.

    Parameters
    ----------
    result
        (N, G') float32 for the mean of the draws of z, or (S, N, G') for each of them.
    n_samples
        Draws of z per cell.
    genes
        Which genes, None for all.
    batch_codes
        Decode every draw as each of these batches and average; None is the cell's own.
    library_size
        Multiplies the frequencies; None gives the mean counts at the cell's own library size.
    """
    with evaluating(module, seed):
        for rows, batch, noise in with_noise(batches, entropy_of(seed)):
            posterior = z_posterior(module, batch)
            draw_library = library_draws(module, batch, noise)
            mean: Tensor | None = None
            for sample in range(n_samples):
                z = module.z_encoder.z_transformation(normal_draw(*posterior, noise))
                scale = _scale(module, batch, z, genes, batch_codes)
                scale *= torch.exp(draw_library()) if library_size is None else library_size
                if result.ndim == 3:
                    result[sample, rows] = scale.cpu().numpy()
                else:
                    mean = scale if mean is None else mean.add_(scale)
            if mean is not None:
                result[rows] = mean.div_(n_samples).cpu().numpy()


def marginal_log_likelihood(
    module: VAE, batches: Minibatches, n_cells: int, *, n_samples: int, seed: int | None
) -> np.ndarray:
    """Importance-sampled log p(x) of each cell, (N,) float64.

    ``log mean_s exp(log p(x | z_s, l_s) + log p(z_s, l_s) - log q(z_s, l_s | x))`` with z_s and
    l_s drawn from q; the observed library is not drawn. For ``latent_distribution="ln"`` the
    densities are those of the normal before the softmax. Sums are in float64; memory does not
    grow with `n_samples`.
    """
    result = np.empty(n_cells)
    learned = not module.use_observed_lib_size
    with evaluating(module, seed):
        for rows, batch, noise in with_noise(batches, entropy_of(seed)):
            posterior = z_posterior(module, batch)
            if learned:
                l_posterior = library_posterior(module, batch)
            else:
                log_library = functional.log_library_size(batch.x)
            n_here, device = batch.x.shape[0], batch.x.device
            total = torch.full((n_here,), -math.inf, dtype=torch.float64, device=device)
            for _ in range(n_samples):
                u, log_weight = _draw(*posterior, torch.zeros(()), torch.ones(()), noise)
                z = module.z_encoder.z_transformation(u)
                if learned:
                    prior = batch.local_l_mean, batch.local_l_var
                    log_library, log_ratio = _draw(*l_posterior, *prior, noise)
                    log_weight = log_weight + log_ratio
                nll = negative_log_likelihood(
                    module, batch.x, z, log_library, batch.batch_index, batch.y
                )
                log_weight = log_weight - nll
                total = torch.logaddexp(total, log_weight)
            result[rows] = (total - math.log(n_samples)).cpu().numpy()
    return result


def _mean_on_simplex(
    module: VAE, q_m: Tensor, q_v: Tensor, noise: BlockNoise, n_draws: int
) -> Tensor:
    """Mean of the softmax of `n_draws` normal draws, (B, L)."""
    total, deviation = torch.zeros_like(q_m), torch.sqrt(q_v).unsqueeze(1)
    for start in range(0, n_draws, DRAWS_AT_ONCE):
        some = q_m.unsqueeze(1).expand(-1, min(DRAWS_AT_ONCE, n_draws - start), -1)
        draws = module.z_encoder.z_transformation(some + deviation * noise.normal(some))
        total += draws.sum(dim=1)
    return total / n_draws


def _draw(
    q_m: Tensor, q_v: Tensor, p_m: Tensor, p_v: Tensor, noise: BlockNoise
) -> tuple[Tensor, Tensor]:
    """Draw from N(q_m, q_v); also log N(draw; p) - log N(draw; q), summed, (N,) float64."""
    standard = noise.normal(q_m)
    draw = q_m + torch.sqrt(q_v) * standard
    squares = standard.double() ** 2 - (draw - p_m.to(draw.device)).double() ** 2 / p_v.double()
    return draw, 0.5 * (squares + torch.log(q_v.double() / p_v.double())).sum(dim=-1)


def _scale(
    module: VAE,
    batch: Minibatch,
    z: Tensor,
    genes: Tensor | None,
    batch_codes: Sequence[int | None],
) -> Tensor:
    """Expression frequencies of chosen genes (N, G'), averaged over `batch_codes`."""
    total: Tensor | None = None
    for code in batch_codes:
        rows = decoder_batch(module, batch.batch_index, code, batch.x)
        # "gene" and no zero inflation: of the heads, only that of the scale is needed.
        logits, _, _ = module.decoder.logits("gene", z, rows, batch.y, zero_inflation=False)
        scale = torch.softmax(logits, dim=-1)
        scale = scale if genes is None else scale[:, genes]
        total = scale if total is None else total.add_(scale)
    if total is None:
        raise AssertionError("batch_codes is never empty")
    return total.div_(len(batch_codes))


def _fill(result: np.ndarray, row: int, values: Tensor) -> int:
    """Copy `values` to the rows of `result` from `row` on; return the next free row."""
    result[row : row + values.shape[0]] = values.cpu().numpy()
    return row + values.shape[0]
