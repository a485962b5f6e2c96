"""Checks of what a caller hands to a model, with messages that say what to do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError


def at_least(minimum: int, **sizes: int) -> None:
    """Refuse a size below `minimum`."""
    for name, size in sizes.items():
        if not size >= minimum:
            raise InputError(f"{name}={size} is too small; it must be at least {minimum}.")


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


def dense(x: Any) -> Tensor:
    """`x` as a dense tensor."""
    if not isinstance(x, Tensor):
        check_matrix(x, None)
    return x if x.layout == torch.strided else x.to_dense()


def _readable(values: Tensor, force: bool | None) -> bool:
    """Whether a check may look at numbers: on the CPU or where asked, never while compiling."""
    return bool(values.device.type == "cpu" or force) and not torch.compiler.is_compiling()


def check_counts(x: Tensor, force: bool | None) -> None:
    """Refuse negative, NaN and infinite counts.

    Reading the answer synchronises with an accelerator, so other devices than the CPU are
    checked only when `force` is true.
    """
    if force is False or not _readable(x, force):
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


def required(name: str, value: Tensor | None, likelihood: str) -> Tensor:
    """Refuse a parameter of the likelihood that is missing."""
    if value is None:
        raise InputError(
            f"{name} is None, but reconstruction_loss={likelihood!r} needs it; pass what "
            "inference() returns."
        )
    return value


def category(
    value: Any,
    n_cat: int,
    n_cells: int,
    name: str,
    *,
    device: torch.device | None = None,
    force: bool | None = None,
) -> Tensor:
    """Bring codes to shape (N, 1) int64, or leave a one-hot (N, n_cat) as it is."""
    expected = f"codes 0..{n_cat - 1} of shape ({n_cells},) or ({n_cells}, 1)"
    if n_cat > 1:
        expected += f", or one-hot rows of shape ({n_cells}, {n_cat})"
    if value is None:
        raise InputError(f"{name} is missing: {n_cat} categories need {expected}.")
    try:
        column = torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is not numeric ({error}); pass {expected}.") from error
    if column.dim() == 1:
        column = column.unsqueeze(1)
    if column.dim() != 2 or column.shape[0] != n_cells or column.shape[1] not in (1, n_cat):
        raise InputError(f"{name} has shape {tuple(column.shape)}; pass {expected}.")
    if column.shape[1] == n_cat and n_cat > 1:
        return column
    codes = column.to(torch.int64)
    if n_cells and _readable(codes, force):
        low, high = (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= n_cat:
            raise InputError(
                f"{name} holds the code {low if low < 0 else high}, outside 0..{n_cat - 1}; "
                f"there are {n_cat} categories."
            )
    return codes


def codes_of(rows: Tensor, name: str) -> Tensor:
    """Codes (N,) of a checked (N, 1) column or of one-hot rows (N, K)."""
    if rows.shape[1] == 1:
        return rows.squeeze(1)
    if rows.numel() and _readable(rows, None):
        exact = ((rows == 0) | (rows == 1)).all() and (rows.sum(1) == 1).all()
        if not exact:
            raise InputError(
                f"{name} is neither codes nor one-hot: a dispersion per category needs exactly "
                "one 1 in each row; pass the codes instead."
            )
    return rows.argmax(1)


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
    if name.endswith("var") and _readable(column, None) and not bool((column > 0).all()):
        raise InputError(f"{name} must be > 0 in every cell: it is a variance.")
    return column.expand_as(like)


def has_hooks(module: nn.Module) -> bool:
    """Whether someone listens to the calls of `module` itself."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
