"""Small data, small models and networks that misbehave on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastvae.data import CountStore, Minibatches, read
from fastvae.datasets import simulate


def small_data(n_cells: int = 120, n_genes: int = 30, seed: int = 0) -> Any:
    """Simulated counts with two batches and three types; var_names are strings."""
    return simulate(n_cells, n_genes, n_batches=2, n_types=3, density=0.3, seed=seed)


def small_store(n_cells: int = 120, n_genes: int = 30) -> CountStore:
    return CountStore.from_anndata(read(small_data(n_cells, n_genes)), batch_key="batch")


def batches_of(
    store: CountStore, cells: np.ndarray | None = None, *, size: int = 32, shuffle: bool = True
) -> Minibatches:
    return Minibatches(store, cells, batch_size=size, shuffle=shuffle, seed=3)


class Toy(nn.Module):
    """One weight per gene and BatchNorm; ``forward`` has the shape of the VAE's."""

    def __init__(self, n_genes: int = 30) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 1.0, n_genes))
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, float]:
        score = x.to_dense() @ self.weight
        return (score - 3.0) ** 2, self.norm(score.unsqueeze(1)).squeeze(1) ** 2, 0.0


class PoisonedGradient(torch.autograd.Function):
    """Identity forward; the gradient is NaN wherever the flag is set."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, flag: Tensor) -> Tensor:
        ctx.save_for_backward(flag)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (flag,) = ctx.saved_tensors
        return torch.where(flag, torch.full_like(gradient, torch.nan), gradient), None
