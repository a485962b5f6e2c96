"""Correlation between genes over more draws than fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

KNOTS = 8192
"""Values that the ranks of a gene are counted between; ranks of up to as many draws are exact."""

Values = Callable[[], Iterable[Tensor]]


def pearson(values: Values, n_genes: int) -> np.ndarray:
    """Return correlations (G, G) float64 of genes; `values` yields parts of the rows, (rows, G)."""
    return _correlation(_Moments.of(values(), n_genes))


def spearman(values: Values, preview: Values, n_genes: int) -> np.ndarray:
    """Return rank correlations (G, G) float64.

    Memory is G x G and G x `KNOTS`. The values of `preview`, sorted, cut the range of each gene;
    how many values lie below each knot is counted over all of them, and the rank of a value is
    that of the middle of its bin. A bin has about 1 / `KNOTS` of the values: with 2,000 knots
    correlations were off by 2e-5. Where `preview` yields all rows, each value is a knot and the
    ranks are exact.

    Parameters
    ----------
    values
        Yields the rows; called twice, and must yield the same values.
    preview
        Yields at most `KNOTS` rows, evenly chosen from all.
    """
    knots = torch.cat([part.T for part in preview()], dim=1).contiguous().sort(dim=1).values
    n_bins = knots.shape[1] + 1
    counted = torch.zeros((n_genes, n_bins), dtype=torch.float64, device=knots.device)
    total = 0
    for part in values():
        bins = torch.searchsorted(knots, part.T.contiguous())
        counted.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float64))
        total += len(part)
    ranks = (torch.cumsum(counted, dim=1) - (counted - 1) / 2) / total - 0.5
    del counted

    def ranked() -> Iterable[Tensor]:
        for part in values():
            yield ranks.gather(1, torch.searchsorted(knots, part.T.contiguous())).T

    return _correlation(_Moments.of(ranked(), n_genes))


class _Moments:
    """Number, mean and centred products of rows, joined part by part (Chan et al. 1983)."""

    def __init__(self, n_genes: int) -> None:
        self.n = 0
        self.mean = torch.zeros(n_genes, dtype=torch.float64)
        self.products = torch.zeros((n_genes, n_genes), dtype=torch.float64)

    @classmethod
    def of(cls, parts: Iterable[Tensor], n_genes: int) -> _Moments:
        moments = cls(n_genes)
        for part in parts:
            moments.add(part.double())
        return moments

    def add(self, rows: Tensor) -> None:
        self.mean, self.products = self.mean.to(rows.device), self.products.to(rows.device)
        n_new, mean = len(rows), rows.mean(dim=0)
        centred, step = rows - mean, mean - self.mean
        self.products.addmm_(centred.T, centred)
        joined = self.n + n_new
        self.products.addr_(step, step, alpha=self.n * n_new / joined)
        self.mean = self.mean + step * (n_new / joined)
        self.n = joined


def _correlation(moments: _Moments) -> np.ndarray:
    """Return the correlations; NaN for a gene that does not vary."""
    products = moments.products.cpu().numpy()
    spread = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = products / spread[:, None] / spread
    varies = spread > 0
    np.fill_diagonal(found, np.where(varies, 1.0, np.nan))
    return np.clip(found, -1.0, 1.0)
