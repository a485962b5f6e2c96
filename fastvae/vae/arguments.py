"""Checks of the arguments of a model's methods, with messages that say what to do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._torch import readable
from ..errors import InputError


def check_matrix(x: Any, n_genes: int | None) -> None:
    """Refuse an `x` that is not a dense or CSR matrix of cells by `n_genes` genes."""
    if not isinstance(x, Tensor):
        raise InputError(
            f"x must be a torch tensor of cells by genes, got {type(x).__name__}; "
            "convert it with torch.as_tensor(x)."
        )
    if x.layout not in (torch.strided, torch.sparse_csr):
        raise InputError(f"x has layout {x.layout}; pass a dense tensor or x.to_sparse_csr().")
    if x.dim() != 2 or (n_genes is not None and x.shape[1] != n_genes):
        genes = "n_genes" if n_genes is None else str(n_genes)
        raise InputError(
            f"x has shape {tuple(x.shape)}, expected (n_cells, {genes}); select the genes the "
            "model was built with, in the same order."
        )


def as_dense(x: Any) -> Tensor:
    """`x` as a dense tensor."""
    if not isinstance(x, Tensor):
        check_matrix(x, None)
    return x if x.layout == torch.strided else x.to_dense()


def refuse_non_counts(x: Tensor, force: bool | None) -> None:
    """Refuse negative, NaN and infinite counts.

    Reading the answer synchronises with an accelerator, so other devices than the CPU are
    checked only when `force` is true.
    """
    if force is False or not readable(x, force):
        return
    values = x.detach()
    if values.layout == torch.sparse_csr:
        values = values.values()
    if values.numel() == 0:
        return
    low, high = (float(bound) for bound in values.aminmax())
    if not low >= 0.0 or high == float("inf"):
        found = "NaN" if low != low else f"{low:g}" if low < 0 else "infinity"
        raise InputError(
            f"x contains {found}; counts must be finite and >= 0. Pass raw counts, not "
            "normalised or scaled values, and remove cells or genes with missing values."
        )


def required(name: str, value: Tensor | None, likelihood: str) -> None:
    """Refuse a parameter of the likelihood that is missing."""
    if value is None:
        raise InputError(
            f"{name} is None, but reconstruction_loss={likelihood!r} needs it; pass what "
            "inference() returns."
        )


def prior(value: Any, name: str, like: Tensor) -> Tensor:
    """A prior parameter of the log library size as (N, 1), or a scalar, like `like` (N, 1)."""
    if value is None:
        raise InputError(
            f"{name} is missing: pass one value per cell, shape ({like.shape[0]}, 1), or build "
            "the model with use_observed_lib_size=True."
        )
    column = torch.as_tensor(value, device=like.device)
    if not column.is_floating_point():
        column = column.to(like.dtype)
    if column.dim() == 1:
        column = column.unsqueeze(1)
    if column.numel() != 1 and column.shape != like.shape:
        raise InputError(
            f"{name} has shape {tuple(column.shape)}, expected {tuple(like.shape)} (one per cell)."
        )
    if name.endswith("var") and readable(column, None) and not bool((column > 0).all()):
        raise InputError(f"{name} must be > 0 in every cell: it is a variance.")
    return column.expand_as(like)
