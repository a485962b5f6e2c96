"""Expression over a population: draws from all of its cells together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..._torch import device_of, evaluating
from ...data.stores.store import Store
from . import encode
from .decode import chunks
from .importance import Reweighting, Weighting
from .noise import minibatches_of_blocks
from .population import Picked, Posterior

if TYPE_CHECKING:
    from ...vae.vae import VAE


def overall_expression(
    module: VAE,
    store: Store,
    rows: np.ndarray,
    result: np.ndarray,
    *,
    genes: np.ndarray | None,
    batch_codes: Sequence[int | None],
    library_size: float | None,
    weighting: Weighting | None,
    batch_size: int,
    seed: int,
) -> np.ndarray:
    """Fill `result` (S, G') float32 with decoded draws; return the row of each draw's cell (S,).

    The other arguments are those of `decode.expression`; with `weighting`, `batch_codes` has
    one entry.
    """
    rng, code = np.random.default_rng([seed, 0]), batch_codes[0]
    picked = Picked.of(
        rows,
        None if code is None else [code],
        store.batch_codes,
        len(result),
        module.n_latent,
        rng,
        evenly=weighting is not None,
    )
    cells = np.unique(picked.cells)
    batches = minibatches_of_blocks(store, cells, batch_size, device_of(module))
    with evaluating(module, seed=0):
        posterior = Posterior(module, batches, cells)
        if weighting is not None:
            again = Reweighting(store, posterior, weighting, batch_size)
            picked = again.draws(picked, rows, [seed, 3], "the cells")
        result[:] = 0.0
        for code in batch_codes:
            told = picked
            if code is not None:
                told = replace(picked, batch_codes=np.full_like(picked.batch_codes, code))
            draws = posterior.draws(told)
            for part in chunks(result.shape[1], len(result)):
                which = part if genes is None else torch.from_numpy(genes[part])
                result[:, part] += draws.scale(which).T.cpu().numpy() / np.float32(len(batch_codes))
        if library_size is not None:
            result *= np.float32(library_size)
        else:
            mean, variance = encode.library_moments(module, batches, len(cells))
            place = np.searchsorted(cells, picked.cells)
            noise = rng.standard_normal((len(result), 1), dtype=np.float32)
            result *= np.exp(mean[place] + np.sqrt(variance[place]) * noise)
    return picked.cells
