"""Expression decoded from latent draws, a chunk of genes or cells at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..._covariates import NO_COVARIATES, CellCovariates, Covariates
from ..._torch import evaluating
from ...data import Minibatches
from ...nn import DecoderSCVI, has_softplus, scale_of
from ...vae.steps import covariates_of, decoder_covariates, decoder_input, log_dispersion
from ...vae.vae import VAE
from .encode import covariates_in, library_draws, normal_draw, z_posterior
from .noise import BlockNoise, entropy_of, with_noise

LARGEST_RATE = 1e8  # a float32 Poisson draw above this is no longer a whole number

CHUNK_VALUES = 1 << 22
"""Most values of a matrix of genes by draws; genes are decoded in parts of this size."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What one draw of z (and of the library) decodes to, for B cells.

    Attributes
    ----------
    rows
        Positions of the cells among those asked for.
    sample
        Number of the draw, from 0.
    scale
        Expression frequencies (B, G); means for a size factor of 1, where cells have size factors.
    library
        (B, 1) library size or size factor, not its logarithm.
    theta
        (G,) or (B, G); None for "poisson".
    zi_logits
        (B, G); None without "zinb".
    noise
        For further draws.
    """

    rows: slice
    sample: int
    scale: Tensor
    library: Tensor
    theta: Tensor | None
    zi_logits: Tensor | None
    noise: BlockNoise

    def theta_of_cells(self) -> Tensor:
        """Return theta as (B, G)."""
        assert self.theta is not None
        return self.theta.expand_as(self.scale)

    def counts(self, genes: Tensor | slice) -> Tensor:
        """Draw counts of some genes, (B, genes)."""
        rate = self.library * self.scale[:, genes]
        if self.theta is not None:
            theta = self.theta_of_cells()[:, genes].contiguous()
            rate = rate * (self.noise.gamma(theta) / theta)
        counts = self.noise.poisson(rate.clamp(max=LARGEST_RATE))
        if self.zi_logits is not None:
            extra = self.noise.uniform(counts) <= torch.sigmoid(self.zi_logits[:, genes])
            counts = counts.masked_fill(extra, 0.0)
        return counts

    def denoised(self, genes: Tensor | slice, size: float) -> Tensor:
        """Draw the rate at library `size`: it varies by theta, and has no noise of counting."""
        rate = size * self.scale[:, genes]
        if self.theta is None:
            return rate
        theta = self.theta_of_cells()[:, genes].contiguous()
        return rate * (self.noise.gamma(theta) / theta)


def decoded(
    module: VAE, batches: Minibatches, n_samples: int, batch_code: int | None, seed: int
) -> Iterator[Decoded]:
    """Yield what each draw decodes to, minibatch by minibatch.

    Parameters
    ----------
    module
        In evaluation mode, gradients off.
    batches
        Of whole blocks.
    batch_code
        Decode as this batch; None is each cell's own.
    """
    likelihood = module.reconstruction_loss
    for rows, batch, noise in with_noise(batches, seed):
        own = covariates_in(module, batch)
        posterior = z_posterior(module, batch.x, own)
        draw_library = library_draws(module, batch.x, own, noise)
        covariates = own.decoded_as(batch_code)
        for sample in range(n_samples):
            z = module.z_encoder.z_transformation(normal_draw(*posterior, noise))
            log_library = draw_library()
            logits, head, zi_logits = module.decoder.logits(
                module.dispersion,
                decoder_input(module, z, covariates),
                *decoder_covariates(module, covariates),
                zero_inflation=likelihood == "zinb",
            )
            theta = None
            if likelihood != "poisson":
                log_theta, codes = log_dispersion(module, head, covariates)
                theta = torch.exp(log_theta)
                theta = theta if codes is None else theta.index_select(0, codes)
            yield Decoded(
                rows,
                sample,
                scale_of(module.decoder, logits),
                torch.exp(log_library),
                theta,
                zi_logits if likelihood == "zinb" else None,
                noise,
            )


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
        Decode every draw as each of these batches and average; None is the cell's own batch.
    library_size
        Factor of the frequencies; None gives the mean counts at the cell's own library size.
    """
    with evaluating(module, seed):
        draws = _draws(module, batches, n_samples, genes, batch_codes, library_size, seed)
        if result.ndim == 3:
            for rows, sample, scale in draws:
                result[sample, rows] = scale.cpu().numpy()
        else:
            for rows, mean in _means(draws, n_samples):
                result[rows] = mean


def mean_expression(
    module: VAE,
    batches: Minibatches,
    *,
    n_samples: int,
    genes: Tensor | None,
    batch_codes: Sequence[int | None],
    library_size: float | None,
    seed: int | None,
) -> Iterator[np.ndarray]:
    """Yield decoded expression (B, G') float32 of each minibatch, the mean of the draws of z.

    The parameters are those of `expression`, and so are the numbers.
    """
    with evaluating(module, seed):
        draws = _draws(module, batches, n_samples, genes, batch_codes, library_size, seed)
        for _, mean in _means(draws, n_samples):
            yield mean


def _draws(
    module: VAE,
    batches: Minibatches,
    n_samples: int,
    genes: Tensor | None,
    batch_codes: Sequence[int | None],
    library_size: float | None,
    seed: int | None,
) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield positions of cells, number of the draw and decoded expression (B, G')."""
    for rows, batch, noise in with_noise(batches, entropy_of(seed)):
        own = covariates_in(module, batch)
        posterior = z_posterior(module, batch.x, own)
        draw_library = library_draws(module, batch.x, own, noise)
        decoded_as = [own.decoded_as(code) for code in batch_codes]
        for sample in range(n_samples):
            z = module.z_encoder.z_transformation(normal_draw(*posterior, noise))
            scale = _scale(module, z, genes, decoded_as)
            scale *= torch.exp(draw_library()) if library_size is None else library_size
            yield rows, sample, scale


def _means(
    draws: Iterator[tuple[slice, int, Tensor]], n_samples: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield positions and mean over the draws of each minibatch."""
    mean: Tensor | None = None
    for rows, sample, scale in draws:
        mean = scale if mean is None else mean.add_(scale)
        if sample == n_samples - 1:
            yield rows, mean.div_(n_samples).cpu().numpy()
            mean = None


def _scale(
    module: VAE, z: Tensor, genes: Tensor | None, decoded_as: Sequence[Covariates]
) -> Tensor:
    """Return frequencies of chosen genes (N, G'), averaged over `decoded_as`."""
    total: Tensor | None = None
    for covariates in decoded_as:
        told, given = decoder_covariates(module, covariates), decoder_input(module, z, covariates)
        # "gene" and no zero inflation: only the head of the scale is needed
        logits, _, _ = module.decoder.logits("gene", given, *told, zero_inflation=False)
        scale = scale_of(module.decoder, logits)
        scale = scale if genes is None else scale[:, genes]
        total = scale if total is None else total.add_(scale)
    if total is None:
        raise AssertionError("decoded_as is never empty")
    return total.div_(len(decoded_as))


class ScaleDraws:
    """Expression frequencies of S draws of z, given for a few genes at a time.

    It keeps the last hidden layer (S, H) and the normaliser of the softmax (S,). Each request for
    a gene computes one row of the last linear layer.

    Parameters
    ----------
    module
        In evaluation mode, gradients off.
    z
        Draws (S, L).
    batch_codes
        (S,) what each draw is decoded as.
    more
        The other covariates of the cell of each draw.
    """

    def __init__(
        self, module: VAE, z: Tensor, batch_codes: Tensor, more: CellCovariates = NO_COVARIATES
    ) -> None:
        self.decoder, self.n_genes = module.decoder, module._n_input
        covariates = covariates_of(module, z, batch_codes, None, more)
        self.z = z = decoder_input(module, z, covariates)
        self.told = decoder_covariates(module, covariates)[:-1]
        self.head: nn.Linear | None = None
        self.log_norm: Tensor | None = None
        if isinstance(self.decoder, DecoderSCVI):
            self.hidden = self.decoder.px_decoder(z, *self.told)
            self.head = cast(nn.Linear, self.decoder.px_scale_decoder[0])
        if has_softplus(self.decoder):
            return
        self.log_norm = torch.full((len(z),), -torch.inf, dtype=z.dtype, device=z.device)
        for genes in chunks(self.n_genes, len(z)):
            part = torch.logsumexp(self._logits(genes), dim=0)
            self.log_norm = torch.logaddexp(self.log_norm, part)

    def __len__(self) -> int:
        return len(self.z)

    def scale(self, genes: slice | Tensor) -> Tensor:
        """Return the frequencies of these genes, (genes, S); over all genes a draw sums to 1.

        Where cells have size factors, they are means for a factor of 1.
        """
        if self.log_norm is None:
            return nn.functional.softplus(self._logits(genes))
        return torch.exp(self._logits(genes) - self.log_norm)

    def _logits(self, genes: slice | Tensor) -> Tensor:
        if self.head is not None:
            weight, bias = self.head.weight[genes], self.head.bias[genes, None]
            return torch.addmm(bias, weight, self.hidden.T)
        # A decoder without a hidden layer gives all genes; take a few draws at a time.
        step = max(1, CHUNK_VALUES // self.n_genes)
        parts = []
        for start in range(0, len(self.z), step):
            rows = slice(start, start + step)
            told = [None if one is None else one[rows] for one in self.told]
            logits = self.decoder.logits("gene", self.z[rows], *told, None, zero_inflation=False)[0]
            parts.append(logits[:, genes].T)
        return torch.cat(parts, dim=1)


def chunks(n_genes: int, n_draws: int) -> Iterator[slice]:
    """Cut the genes so that no matrix over the draws has more than `CHUNK_VALUES` values."""
    step = max(1, CHUNK_VALUES // max(n_draws, 1))
    for start in range(0, n_genes, step):
        yield slice(start, min(start + step, n_genes))
