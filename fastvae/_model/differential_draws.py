"""Draws of expression frequencies from groups of cells, never all genes at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from .._vae.parts import decoder_batch
from ..data import Minibatches
from ..nn import DecoderSCVI
from .draws import z_posterior

if TYPE_CHECKING:
    from ..vae import VAE

CHUNK_VALUES = 1 << 22
"""Genes are taken so many at a time that a matrix over the draws has no more values than this."""


@dataclass(frozen=True, eq=False)
class Picked:
    """Cells drawn with replacement, and the noise of each draw.

    Attributes
    ----------
    cells
        (S,) rows of the store; one of them may come several times.
    noise
        (S, L) float32 standard normal.
    batch_codes
        (S,) what to decode each draw as.
    n_parts
        Draws decoded as each of so many batches follow on each other, in equal parts.
    """

    cells: np.ndarray
    noise: np.ndarray
    batch_codes: np.ndarray
    n_parts: int = 1

    @classmethod
    def of(
        cls,
        cells: np.ndarray,
        codes: Sequence[int] | None,
        own_batch: np.ndarray,
        n_samples: int,
        n_latent: int,
        rng: np.random.Generator,
        *,
        evenly: bool = False,
    ) -> Picked:
        """Draw `n_samples` from `cells`, in equal parts decoded as each of `codes`.

        ``codes=None`` decodes each draw as its cell's own batch. With codes the number is rounded
        down to a multiple of theirs, and draws of one code are together. `evenly` draws as often
        from one cell as from another, to one draw; otherwise cells are picked with replacement.
        """
        groups = 1 if codes is None else len(codes)
        each = max(n_samples // groups, 1)
        if evenly:
            turns = np.resize(rng.permutation(len(cells)), each)
            rows = cells[np.tile(turns, groups)]
        else:
            rows = cells[rng.integers(len(cells), size=each * groups)]
        noise = rng.standard_normal((each * groups, n_latent), dtype=np.float32)
        told = own_batch[rows] if codes is None else np.repeat(np.asarray(codes), each)
        return cls(rows, noise, told.astype(np.int64), groups)

    def take(self, draws: np.ndarray) -> Picked:
        """Return the draws with these numbers, as many of each part as there were."""
        return Picked(self.cells[draws], self.noise[draws], self.batch_codes[draws], self.n_parts)


class Posterior:
    """Mean and variance of q(z | x) of some cells, encoded once.

    Parameters
    ----------
    module
        In evaluation mode, gradients off.
    batches
        Minibatches over `cells`.
    cells
        (M,) ascending rows.
    """

    def __init__(self, module: VAE, batches: Minibatches, cells: np.ndarray) -> None:
        means, variances = [], []
        for batch in batches:
            q_m, q_v = z_posterior(module, batch)
            means.append(q_m)
            variances.append(q_v)
        self.module, self.cells = module, cells
        self.mean, self.variance = torch.cat(means), torch.cat(variances)

    def positions(self, picked: Picked) -> Tensor:
        """Draw the normal below z, before any softmax, for the picked cells: (S, L)."""
        device = self.mean.device
        rows = torch.from_numpy(np.searchsorted(self.cells, picked.cells)).to(device)
        noise = torch.from_numpy(picked.noise).to(self.mean)
        return self.mean[rows] + torch.sqrt(self.variance[rows]) * noise

    def draws(self, picked: Picked) -> ScaleDraws:
        """Draw z for the picked cells."""
        z = self.module.z_encoder.z_transformation(self.positions(picked))
        return ScaleDraws(self.module, z, torch.from_numpy(picked.batch_codes).to(z.device))


class ScaleDraws:
    """Expression frequencies of S draws of z, given for a few genes at a time.

    Kept are the last hidden layer (S, H) and the normaliser of the softmax (S,); a gene costs
    one row of the last linear layer each time it is asked for.
    """

    def __init__(self, module: VAE, z: Tensor, batch_codes: Tensor) -> None:
        self.z, self.decoder, self.n_genes = z, module.decoder, module._n_input
        self.batch = decoder_batch(module, batch_codes.unsqueeze(1), None, z)
        self.head: nn.Linear | None = None
        if isinstance(self.decoder, DecoderSCVI):
            self.hidden = self.decoder.px_decoder(z, self.batch)
            self.head = cast(nn.Linear, self.decoder.px_scale_decoder[0])
        self.log_norm = torch.full((len(z),), -torch.inf, dtype=z.dtype, device=z.device)
        for genes in chunks(self.n_genes, len(z)):
            part = torch.logsumexp(self._logits(genes), dim=0)
            self.log_norm = torch.logaddexp(self.log_norm, part)

    def __len__(self) -> int:
        return len(self.z)

    def scale(self, genes: slice | Tensor) -> Tensor:
        """Return the frequencies of these genes, (genes, S); over all genes a draw sums to 1."""
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
            batch = None if self.batch is None else self.batch[rows]
            logits = self.decoder.logits("gene", self.z[rows], batch, None, zero_inflation=False)[0]
            parts.append(logits[:, genes].T)
        return torch.cat(parts, dim=1)


def chunks(n_genes: int, n_draws: int) -> Iterator[slice]:
    """Cut the genes so that no matrix over the draws has more than `CHUNK_VALUES` values."""
    step = max(1, CHUNK_VALUES // max(n_draws, 1))
    for start in range(0, n_genes, step):
        yield slice(start, min(start + step, n_genes))
