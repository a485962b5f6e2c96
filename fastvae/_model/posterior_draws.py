"""Draws from the posterior of each cell, the same however the cells are cut into minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import functional
from .._vae.parts import decoder_batch, encoder_input, log_dispersion
from ..data import Minibatches
from ..nn import VARIANCE_FLOOR

if TYPE_CHECKING:
    from ..vae import VAE

BLOCK = 64
"""Cells that share a generator; minibatches are whole numbers of blocks."""

LARGEST_RATE = 1e8  # a float32 Poisson draw above this is no longer a whole number


def whole_blocks(batch_size: int) -> int:
    """Round up to a whole number of blocks."""
    return -(-batch_size // BLOCK) * BLOCK


class BlockNoise:
    """Random numbers for B cells that follow on each other, from generators of their blocks.

    Parameters
    ----------
    seed, first
        Of the question, and the position of the first cell: a whole number of blocks.
    """

    def __init__(self, seed: int, first: int, n_cells: int, device: torch.device) -> None:
        assert first % BLOCK == 0
        self._rows = [
            slice(start, min(start + BLOCK, n_cells)) for start in range(0, n_cells, BLOCK)
        ]
        self._generators = []
        for number in range(len(self._rows)):
            entropy = np.random.SeedSequence([seed, first // BLOCK + number])
            state = int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))
            self._generators.append(torch.Generator(device).manual_seed(state))

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers of the shape of `like` (B, ...)."""
        return self._each(
            lambda rows, g: torch.randn(
                like[rows].shape, generator=g, dtype=like.dtype, device=like.device
            )
        )

    def uniform(self, like: Tensor) -> Tensor:
        """Return numbers in [0, 1) of the shape of `like`."""
        return self._each(
            lambda rows, g: torch.rand(
                like[rows].shape, generator=g, dtype=like.dtype, device=like.device
            )
        )

    def gamma(self, shape: Tensor) -> Tensor:
        """Draw Gamma(shape, 1)."""
        return self._each(lambda rows, g: torch._standard_gamma(shape[rows], generator=g))

    def poisson(self, rate: Tensor) -> Tensor:
        """Draw Poisson(rate)."""
        return self._each(lambda rows, g: torch.poisson(rate[rows], generator=g))

    def _each(self, draw: Callable[[slice, torch.Generator], Tensor]) -> Tensor:
        pairs = zip(self._rows, self._generators, strict=True)
        return torch.cat([draw(rows, generator) for rows, generator in pairs])


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
        Of a size that `whole_blocks` gave.
    batch_code
        Decode as this batch; None is each cell's own.
    """
    first, likelihood = 0, module.reconstruction_loss
    for batch in batches:
        x, n_here = encoder_input(module, batch.x), batch.x.shape[0]
        noise = BlockNoise(seed, first, n_here, batch.x.device)
        rows = slice(first, first + n_here)
        first = rows.stop
        q_m, q_log_v = module.z_encoder.moments(x, batch.y)
        deviation = torch.sqrt(torch.exp(q_log_v) + VARIANCE_FLOOR)
        told = decoder_batch(module, batch.batch_index, batch_code, batch.x)
        if module.use_observed_lib_size:
            log_library = functional.log_library_size(batch.x)
        else:
            l_m, l_log_v = module.l_encoder.moments(x)
            l_deviation = torch.sqrt(torch.exp(l_log_v) + VARIANCE_FLOOR)
        for sample in range(n_samples):
            z = module.z_encoder.z_transformation(q_m + deviation * noise.normal(q_m))
            if not module.use_observed_lib_size:
                log_library = l_m + l_deviation * noise.normal(l_m)
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
