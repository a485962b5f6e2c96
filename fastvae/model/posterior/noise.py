"""Draws from the posterior of each cell, the same however the cells are cut into minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from ...data import Minibatch, Minibatches
from ...data.stores.store import Store
from ...errors import seed_number, whole_number

BLOCK = 64
"""Cells that share a generator; minibatches are whole numbers of blocks."""


def whole_blocks(batch_size: int) -> int:
    """Round up to a whole number of blocks."""
    return -(-batch_size // BLOCK) * BLOCK


def minibatches_of_blocks(
    store: Store, rows: np.ndarray, batch_size: int, device: torch.device
) -> Minibatches:
    """Go over `rows` in whole blocks, so that draws do not depend on `batch_size`.

    Raises
    ------
    InputError
        `batch_size` is not a whole number of at least 1.
    """
    size = min(whole_number("batch_size", batch_size, minimum=1), len(rows))
    return Minibatches(store, rows, batch_size=whole_blocks(size), device=device)


def entropy_of(seed: int | None) -> int:
    """Return the seed itself, or one from torch's generator.

    Raises
    ------
    InputError
        It is not a whole number.
    """
    given = seed_number(seed)
    return int(torch.randint(2**62, ())) if given is None else given


class BlockNoise:
    """Random numbers for B consecutive cells, from a generator for each block of cells.

    Parameters
    ----------
    seed
        Of the question.
    first
        Position of the first cell, a multiple of `BLOCK`.
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


def with_noise(
    batches: Iterable[Minibatch], seed: int
) -> Iterator[tuple[slice, Minibatch, BlockNoise]]:
    """Yield positions, minibatch and noise for each minibatch of whole blocks."""
    first = 0
    for batch in batches:
        rows = slice(first, first + batch.x.shape[0])
        first = rows.stop
        yield rows, batch, BlockNoise(seed, rows.start, batch.x.shape[0], batch.x.device)
