"""What happens to one minibatch, in training and in evaluation.

Nothing here reads a number back from the device: sums stay in tensors until the loop asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..data import Minibatch
from .precision import autocast


def loss_terms(
    module: nn.Module, batch: Minibatch, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Return the two parts of the loss of each cell, both (N,).

    The first has the KL divergence of the library in it where the library is learned: like
    scvi, that part is not warmed up.
    """
    with autocast(precision, batch.x.device):
        reconstruction, kl, _ = module(
            batch.x, batch.local_l_mean, batch.local_l_var, batch.batch_index, batch.y
        )
    return reconstruction, kl


def compute_gradients(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Minibatch,
    kl_weight: Tensor,
    sums: Tensor,
    precision: str = "float32",
    share: float = 1.0,
) -> None:
    """Leave the gradients of ``mean(reconstruction + kl_weight * kl)`` in the parameters.

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
    """
    optimizer.zero_grad(set_to_none=True)
    reconstruction, kl = loss_terms(module, batch, precision)
    loss = (reconstruction + kl_weight * kl).mean()
    (loss if share == 1.0 else loss * share).backward()
    _add(sums, reconstruction, kl)


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
        reconstruction, kl = loss_terms(module, batch, precision)
        _add(sums, reconstruction, kl)
    return True


def _add(sums: Tensor, reconstruction: Tensor, kl: Tensor) -> None:
    total = [part.detach().sum(dtype=torch.float64) for part in (reconstruction, kl)]
    sums += torch.stack(total)


def device_of(module: nn.Module) -> torch.device:
    """Return the device that the parameters are on."""
    return next(module.parameters()).device


@contextmanager
def seeded(device: torch.device, seed: int | None) -> Iterator[None]:
    """Draw from `seed` inside the block and leave torch's generators as they were.

    None draws from torch's own generators as they stand, which then move on.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(module: nn.Module, seed: int | None = 0) -> Iterator[None]:
    """Evaluate inside the block: eval mode, no gradients, random numbers from `seed`.

    Every submodule's training flag is put back afterwards, also where they differed.
    """
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), seeded(device_of(module), seed):
            yield
    finally:
        for part, training in flags:
            part.training = training
