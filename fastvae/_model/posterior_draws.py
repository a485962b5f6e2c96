"""What draws from the posterior of each cell decode to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._vae.parts import decoder_batch, log_dispersion
from ..data import Minibatches
from .draws import BlockNoise, library_draws, normal_draw, with_noise, z_posterior

if TYPE_CHECKING:
    from ..vae import VAE

LARGEST_RATE = 1e8  # a float32 Poisson draw above this is no longer a whole number


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
        Expression frequencies (B, G).
    library
        (B, 1), not its logarithm.
    theta
        (G,) or (B, G); None for "poisson".
    zi_logits
        (B, G); None but for "zinb".
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
        """Draw the rate at library `size`: without the noise of counting, with that of theta."""
        rate = size * self.scale[:, genes]
        if self.theta is None:
            return rate
        theta = self.theta_of_cells()[:, genes].contiguous()
        return rate * (self.noise.gamma(theta) / theta)


def decoded(
    module: VAE, batches: Minibatches, n_samples: int, batch_code: int | None, seed: int
) -> Iterator[Decoded]:
    """Go over the cells, and for each minibatch over the draws.

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
        posterior = z_posterior(module, batch)
        draw_library = library_draws(module, batch, noise)
        told = decoder_batch(module, batch.batch_index, batch_code, batch.x)
        for sample in range(n_samples):
            z = module.z_encoder.z_transformation(normal_draw(*posterior, noise))
            log_library = draw_library()
            logits, head, zi_logits = module.decoder.logits(
                module.dispersion, z, told, batch.y, zero_inflation=likelihood == "zinb"
            )
            theta = None
            if likelihood != "poisson":
                log_theta, codes = log_dispersion(module, head, told, batch.y, batch.x)
                theta = torch.exp(log_theta)
                theta = theta if codes is None else theta.index_select(0, codes.ravel())
            yield Decoded(
                rows,
                sample,
                torch.softmax(logits, dim=-1),
                torch.exp(log_library),
                theta,
                zi_logits if likelihood == "zinb" else None,
                noise,
            )
