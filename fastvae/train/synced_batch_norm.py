"""Batch normalisation over the cells of all processes that train together.

``torch.nn.SyncBatchNorm`` does this on GPUs alone; this one also runs on CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._torch import sharing


class _AllSum(torch.autograd.Function):
    """Sum over the processes; the gradient is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d with the mean and the variance of the cells of all processes together."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C), where N may differ between the processes."""
        if not self.training:
            return super().forward(x)
        wide = x.float()
        count = wide.new_tensor([wide.shape[0]])
        sums = _AllSum.apply(torch.cat([wide.sum(0), count]))
        n, mean = sums[-1], sums[:-1] / sums[-1]
        centred = wide - mean
        var = _AllSum.apply(centred.square().sum(0)) / n
        if self.track_running_stats:
            self._track(mean.detach(), var.detach() * (n / (n - 1)).detach())
        y = centred * torch.rsqrt(var + self.eps)
        if self.affine:
            y = y * self.weight + self.bias
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1  # type: ignore[assignment,operator]
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)


@contextmanager
def synced_batch_norm(module: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Put a `SyncedBatchNorm1d` in the place of every BatchNorm1d of `module` inside the block.

    Each shares the parameters and buffers of the layer in whose place it is, so optimisers and
    state dicts see the same tensors under the same names. After the block the layers are back.
    """
    layers = {
        path: part
        for path, part in module.named_modules(remove_duplicate=False)
        if wanted and type(part) is nn.BatchNorm1d
    }
    synced = {layer: sharing(SyncedBatchNorm1d, layer) for layer in layers.values()}
    for path, layer in layers.items():
        module.set_submodule(path, synced[layer])
    try:
        yield
    finally:
        for path, layer in layers.items():
            layer.train(synced[layer].training)
            module.set_submodule(path, layer)
