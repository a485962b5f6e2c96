"""Codes of batches and labels: checked, and brought to one shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import InputError


def _readable(values: Tensor, force: bool | None) -> bool:
    """Whether a check may look at numbers: on the CPU or where asked, never while compiling."""
    return bool(values.device.type == "cpu" or force) and not torch.compiler.is_compiling()


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
