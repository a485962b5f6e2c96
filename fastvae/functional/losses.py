"""Sums of the losses of cells."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.backends.reference import REFERENCE
from .dispatch import select


def add_losses(sums: Tensor, reconstruction: Tensor, kl: Tensor) -> None:
    """Add the sums of two loss terms over the cells to `sums`, in place.

    Nothing waits for the device.

    Parameters
    ----------
    sums : Tensor, (2,), float64
        Or float32, on devices that have no float64.
    reconstruction, kl : Tensor, (N,)
        Summed in the dtype of `sums`; no gradient passes.
    """
    terms = reconstruction.detach(), kl.detach()
    plain = all(term.dtype == torch.float32 for term in terms) and terms[0].shape == terms[1].shape
    (select(*terms) if plain else REFERENCE).add_losses(sums, *terms)
