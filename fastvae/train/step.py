"""What happens to one minibatch, in training and in evaluation, and in which precision.

Nothing here reads a number back from the device: sums stay in tensors until the loop asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from .._torch import APPLE, device_of
from ..data import Minibatch
from ..functional.gather import CountLogs
from ..functional.losses import add_losses
from ..nn import has_softplus
from ..vae.gradients import StockGradients
from ..vae.semi_supervised import LabelledCells
from ..vae.stock import stock_throughout, takes_logs
from ..vae.vae import VAE
from .settings import TrainSettings


def with_logs(module: nn.Module) -> bool:
    """Whether the logarithms of the counts go to `module` along with them."""
    parallel = isinstance(module, nn.parallel.DistributedDataParallel)
    inner = module.module if parallel else module
    return isinstance(inner, VAE) and takes_logs(inner)


def loss_terms(
    module: nn.Module, batch: Minibatch, precision: str = "float32"
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return the two parts of the loss of each cell, both (N,), and that of the classifier.

    The first has the KL divergence of the library in it where the library is learned: like
    scvi, that part is not warmed up. The last is 0.0 without labelled cells.
    """
    known: dict[str, Any] = batch.covariates.given()
    if batch.labelled is not None:
        some = batch.labelled
        known["labelled"] = LabelledCells(some.x, some.y, some.batch_index, some.covariates)
    if batch.logs is not None and with_logs(module):
        known["logs"] = batch.logs
    with autocast(precision, batch.x.device):
        reconstruction, kl, classification = module(
            batch.x, batch.local_l_mean, batch.local_l_var, batch.batch_index, batch.y, **known
        )
    return reconstruction, kl, classification


def compute_gradients(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Minibatch,
    kl_weight: Tensor,
    sums: Tensor,
    precision: str = "float32",
    share: float = 1.0,
    classification_ratio: float = 0.0,
) -> None:
    """Leave the gradients of ``mean(reconstruction + kl_weight * kl)`` in the parameters.

    Where the minibatch has labelled cells, their classification loss is added.

    Parameters
    ----------
    kl_weight
        0-d tensor on the device.
    sums
        (2,) float64 on the device: the two loss terms, summed over cells, are added to it.
    precision
        See `autocast`.
    share
        What the mean over these cells counts; see `Group`.
    classification_ratio
        Weight of the classification loss.
    """
    optimizer.zero_grad(set_to_none=True)
    reconstruction, kl, classification = loss_terms(module, batch, precision)
    loss = (reconstruction + kl_weight * kl).mean()
    if batch.labelled is not None:
        loss = loss + classification_ratio * classification
    (loss if share == 1.0 else loss * share).backward()
    add_losses(sums, reconstruction, kl)


def write_gradients(
    gradients: Gradients,
    batch: Minibatch,
    kl_weight: Tensor,
    sums: Tensor,
    share: float = 1.0,
) -> None:
    """Do what `compute_gradients` does, without autograd."""
    given = batch.x, batch.local_l_mean, batch.local_l_var, batch.batch_index, batch.y
    more: dict[str, Any] = batch.covariates.given()
    add_losses(sums, *gradients(*given, kl_weight, share, batch.logs, **more))


class Gradients(Protocol):
    """Computes the gradients of a module without autograd, from what its ``forward`` takes."""

    def __call__(
        self,
        x: Tensor,
        local_l_mean: Any,
        local_l_var: Any,
        batch_index: Any,
        y: Any,
        kl_weight: Tensor,
        share: float = 1.0,
        logs: CountLogs | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradients in the parameters; return the two parts of the loss, (N,) both.

        Covariates that minibatches have beside the batch are keyword arguments, by name.
        """


@functools.singledispatch
def written_gradients(module: nn.Module, products: torch.dtype | None = None) -> Gradients | None:
    """Return what computes the gradients of `module` without autograd; None where nothing does.

    `products` is the dtype of the products of the decoder's heads, where it is not that of the
    weights. Classes that are no VAE register a function of their own.
    """
    if not stock_throughout(module):
        return None
    vae = cast(VAE, module)
    if products is not None and has_softplus(vae.decoder):
        return None
    return StockGradients(vae, products)


def without_autograd(module: nn.Module, settings: TrainSettings) -> Gradients | None:
    """Return what a training step calls instead of autograd; None where autograd is needed.

    With bf16 the products of the decoder's heads alone are in bfloat16: for smaller layers the
    conversions cost more than they save.
    """
    if settings.compile or device_of(module).type in APPLE:
        return None
    return written_gradients(module, torch.bfloat16 if settings.precision == "bf16" else None)


def apply_gradients(
    module: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
) -> None:
    """Clip the gradients if asked to, and take the optimiser's step."""
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm)
    optimizer.step()


def evaluate_sums(
    module: nn.Module,
    batches: Iterable[Minibatch],
    sums: Tensor,
    stop: Callable[[], bool] = lambda: False,
    precision: str = "float32",
) -> bool:
    """Add the loss terms of every minibatch, summed over cells, to `sums` (2,) float64.

    Returns False if `stop` said to leave off before the last.
    """
    for batch in batches:
        if stop():
            return False
        reconstruction, kl, _ = loss_terms(module, batch, precision)
        add_losses(sums, reconstruction, kl)
    return True


@contextmanager
def matrix_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Multiply float32 matrices on a GPU as `precision` says inside the block, as before after it.

    A CPU has no TF32 and multiplies in float32 throughout. A user who has chosen through
    ``torch.backends`` instead, which torch does not mix with this, keeps that choice.
    """
    try:
        before = torch.get_float32_matmul_precision() if device.type == "cuda" else None
    except RuntimeError:
        before = None
    if before is None:
        yield
        return
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass: dense layers in bfloat16 where that is asked for.

    Counts never pass through it, and likelihoods are computed and summed in float32.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
