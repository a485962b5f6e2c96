"""Codes of batches and labels: parsed and checked once, then passed on as known to be good."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._torch import readable
from .errors import InputError


def as_column(value: Any) -> Any:
    """(N,) tensors as (N, 1); anything else untouched."""
    return value.unsqueeze(1) if isinstance(value, Tensor) and value.dim() == 1 else value


class Codes:
    """The category of each cell, checked once for each number of categories it is read with.

    Parameters
    ----------
    given
        Codes (N,) or (N, 1) of any numeric dtype, one-hot rows (N, K), or None. Nothing is
        checked before it is read.
    n_cells
        Number of cells N.
    name
        What error messages call it.
    device
        Where the cells are; None leaves `given` where it is.
    force
        Whether to look at codes that are on an accelerator, which waits for it.

    Attributes
    ----------
    given
        As handed over, but for (N,) tensors, which are (N, 1) here.
    n_cells, name, device, force
        The arguments.
    """

    def __init__(
        self,
        given: Any,
        n_cells: int,
        name: str,
        *,
        device: torch.device | None = None,
        force: bool | None = None,
    ) -> None:
        self.given = as_column(given)
        self.n_cells, self.name, self.device, self.force = n_cells, name, device, force
        self._columns: dict[int, Tensor] = {}
        self._rows: dict[tuple[int, torch.dtype | None], Tensor] = {}
        self._indices: dict[int, Tensor] = {}

    def column(self, n_cat: int, name: str | None = None) -> Tensor:
        """Codes (N, 1) int64 from 0 to ``n_cat - 1``, or the given one-hot rows (N, n_cat).

        `name` is what an error message calls the codes here.

        Raises
        ------
        InputError
            They are missing, of the wrong shape, not numeric, or out of range (looked at on a CPU
            or with `force`).
        """
        if n_cat not in self._columns:
            self._columns[n_cat] = self._checked(n_cat, name or self.name)
        return self._columns[n_cat]

    def one_hot(
        self, n_cat: int, dtype: torch.dtype | None = None, name: str | None = None
    ) -> Tensor:
        """One-hot rows (N, n_cat), or the given ones; `name` and errors as in `column`.

        `dtype` is float32 where it is left out, and that of the rows where rows were given.
        """
        key = n_cat, dtype
        if key not in self._rows:
            column = self.column(n_cat, name)
            if column.shape[1] == n_cat and n_cat > 1:
                rows = column if dtype is None else column.to(dtype)
            else:
                rows = torch.zeros(
                    self.n_cells, n_cat, dtype=dtype or torch.float32, device=column.device
                ).scatter_(1, column, 1.0)
            self._rows[key] = rows
        return self._rows[key]

    def index(self, n_cat: int) -> Tensor:
        """Codes (N,) int64 from 0 to ``n_cat - 1``; errors as in `column`.

        Raises
        ------
        InputError
            Rows were given that are not one-hot (looked at on a CPU).
        """
        if n_cat not in self._indices:
            self._indices[n_cat] = self._index_of(self.column(n_cat))
        return self._indices[n_cat]

    def _checked(self, n_cat: int, name: str) -> Tensor:
        expected = f"codes 0..{n_cat - 1} of shape ({self.n_cells},) or ({self.n_cells}, 1)"
        if n_cat > 1:
            expected += f", or one-hot rows of shape ({self.n_cells}, {n_cat})"
        if self.given is None:
            raise InputError(f"{name} is missing: {n_cat} categories need {expected}.")
        try:
            column = torch.as_tensor(self.given, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{name} is not numeric ({error}); pass {expected}.") from error
        if column.dim() == 1:
            column = column.unsqueeze(1)
        if column.dim() != 2 or len(column) != self.n_cells or column.shape[1] not in (1, n_cat):
            raise InputError(f"{name} has shape {tuple(column.shape)}; pass {expected}.")
        if column.shape[1] == n_cat and n_cat > 1:
            return column
        codes = column.to(torch.int64)
        if self.n_cells and readable(codes, self.force):
            low, high = (int(bound) for bound in codes.aminmax())
            if low < 0 or high >= n_cat:
                raise InputError(
                    f"{name} holds the code {low if low < 0 else high}, outside 0..{n_cat - 1}; "
                    f"there are {n_cat} categories."
                )
        return codes

    def _index_of(self, column: Tensor) -> Tensor:
        if column.shape[1] == 1:
            return column.squeeze(1)
        if column.numel() and readable(column, None):
            exact = ((column == 0) | (column == 1)).all() and (column.sum(1) == 1).all()
            if not exact:
                raise InputError(
                    f"{self.name} is neither codes nor one-hot: a dispersion per category needs "
                    "exactly one 1 in each row; pass the codes instead."
                )
        return column.argmax(1)


class Covariates(NamedTuple):
    """The batch and the label of each cell of a minibatch."""

    batch: Codes
    labels: Codes

    @classmethod
    def of(cls, x: Tensor, batch_index: Any, y: Any, *, force: bool | None = None) -> Covariates:
        """Take the codes of the cells of `x` (N, ...); see `Codes`."""
        where: dict[str, Any] = {"device": x.device, "force": force}
        return cls(
            Codes(batch_index, x.shape[0], "batch_index", **where),
            Codes(y, x.shape[0], "y", **where),
        )

    def decoded_as(self, transform_batch: Any) -> Covariates:
        """Put every cell into one batch, or each into another one; None changes nothing.

        Raises
        ------
        InputError
            It is neither an int nor one code per cell.
        """
        if transform_batch is None:
            return self
        n_cells, device, force = self.batch.n_cells, self.batch.device, self.batch.force
        try:
            batch = torch.as_tensor(transform_batch, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"transform_batch={transform_batch!r} is not a batch code; pass an int, or one "
                "code per cell."
            ) from error
        if batch.numel() == 1:
            batch = batch.reshape(1, 1).expand(n_cells, 1)
        codes = Codes(batch, n_cells, "transform_batch", device=device, force=force)
        return self._replace(batch=codes)
