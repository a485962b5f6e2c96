"""Covariates of cells: parsed and checked once, then passed on as known to be good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        column = _numeric(self.given, name, expected, self.device)
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


class Numbers:
    """Numbers of each cell, checked when they are first read.

    Parameters
    ----------
    given
        (N, `n_columns`) of any numeric dtype; (N,) for one column; or None.
    n_cells, n_columns
        Numbers of cells and of columns.
    name
        What error messages call them.
    device, force
        As for `Codes`.
    """

    def __init__(
        self,
        given: Any,
        n_cells: int,
        n_columns: int,
        name: str,
        *,
        device: torch.device | None = None,
        force: bool | None = None,
    ) -> None:
        self._given = given
        self._shape = n_cells, n_columns
        self._name, self._device, self._force = name, device, force
        self._checked: Tensor | None = None

    def columns(self, dtype: torch.dtype) -> Tensor:
        """Return them, (N, `n_columns`).

        Raises
        ------
        InputError
            They are missing, not numeric, of another shape, or, looked at on a CPU, not finite.
        """
        return self._values().to(dtype)

    def log(self, dtype: torch.dtype) -> Tensor:
        """Return their natural logarithms, (N, `n_columns`).

        Raises
        ------
        InputError
            As `columns`; or a number is not above 0.
        """
        values = self._values()
        if self._looked_at(values) and not bool((values > 0).all()):
            raise InputError(
                f"{self._name} must be > 0 in every cell, since its logarithm is used."
            )
        return torch.log(values.to(torch.promote_types(values.dtype, dtype))).to(dtype)

    def _values(self) -> Tensor:
        if self._checked is None:
            self._checked = self._parsed()
        return self._checked

    def _parsed(self) -> Tensor:
        expected = f"numbers of shape {self._shape}"
        if self._given is None:
            raise InputError(f"{self._name} is missing: the network needs {expected}.")
        values: Tensor = as_column(_numeric(self._given, self._name, expected, self._device))
        if tuple(values.shape) != self._shape:
            raise InputError(f"{self._name} has shape {tuple(values.shape)}; pass {expected}.")
        if self._looked_at(values) and not bool(values.isfinite().all()):
            raise InputError(f"{self._name} has NaN or infinite values; pass finite {expected}.")
        return values

    def _looked_at(self, values: Tensor) -> bool:
        return bool(values.numel()) and readable(values, self._force)


class CellCovariates(NamedTuple):
    """What is known of the cells of a minibatch beside their counts, batch and label.

    Attributes
    ----------
    cat_covs
        (N, C) codes from 0 on, a column for each categorical covariate.
    cont_covs
        (N, P) continuous covariates.
    size_factor
        (N, 1) what frequencies are multiplied by, above 0; not its logarithm.
    """

    cat_covs: Any = None
    cont_covs: Any = None
    size_factor: Any = None

    def given(self) -> dict[str, Any]:
        """Return those that are there, by name: keyword arguments of the methods of `VAE`."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def rows(self, cells: Any) -> CellCovariates:
        """Return those of some cells, given by a slice or by their numbers."""
        return self.each(lambda values: values[cells])

    def each(self, change: Callable[[Any], Any]) -> CellCovariates:
        """Return what `change` makes of those that are there."""
        return CellCovariates(**{name: change(values) for name, values in self.given().items()})

    @classmethod
    def joined(cls, parts: Sequence[CellCovariates]) -> CellCovariates:
        """Put those of several minibatches, which have the same ones, one below the other."""
        return cls(
            *(None if some[0] is None else torch.cat(some) for some in zip(*parts, strict=True))
        )


NO_COVARIATES = CellCovariates()


class Covariates(NamedTuple):
    """The covariates of the cells of a minibatch, which are checked when they are read.

    Attributes
    ----------
    batch, labels
        Codes of the batch and of the label.
    categorical
        Codes of each categorical covariate.
    continuous
        The continuous covariates.
    size_factor
        What frequencies are multiplied by.
    """

    batch: Codes
    labels: Codes
    categorical: tuple[Codes, ...]
    continuous: Numbers
    size_factor: Numbers

    @classmethod
    def of(
        cls,
        x: Tensor,
        batch_index: Any,
        y: Any,
        more: CellCovariates = NO_COVARIATES,
        *,
        n_categorical: int = 0,
        n_continuous: int = 0,
        force: bool | None = None,
    ) -> Covariates:
        """Take the covariates of the cells of `x` (N, ...); see `Codes` and `Numbers`.

        Raises
        ------
        InputError
            ``cat_covs`` has not `n_categorical` columns.
        """
        where: dict[str, Any] = {"device": x.device, "force": force}
        n_cells = x.shape[0]
        columns = _columns_of(more.cat_covs, n_cells, n_categorical)
        return cls(
            Codes(batch_index, n_cells, "batch_index", **where),
            Codes(y, n_cells, "y", **where),
            tuple(
                Codes(column, n_cells, f"cat_covs[:, {k}]", **where)
                for k, column in enumerate(columns)
            ),
            Numbers(more.cont_covs, n_cells, n_continuous, "cont_covs", **where),
            Numbers(more.size_factor, n_cells, 1, "size_factor", **where),
        )

    @property
    def codes(self) -> tuple[Codes, ...]:
        """Codes of the batch and of the categorical covariates, in the order of the columns."""
        return self.batch, *self.categorical

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


def _columns_of(cat_covs: Any, n_cells: int, n_columns: int) -> Sequence[Any]:
    """Return the columns of ``cat_covs`` (N, C), None each where there is none."""
    if cat_covs is None or not n_columns:
        return [None] * n_columns
    expected = f"codes of shape ({n_cells}, {n_columns}), a column for each categorical covariate"
    table: Tensor = as_column(_numeric(cat_covs, "cat_covs", expected))
    if tuple(table.shape) != (n_cells, n_columns):
        raise InputError(f"cat_covs has shape {tuple(table.shape)}; pass {expected}.")
    return table.unbind(1)


def _numeric(given: Any, name: str, expected: str, device: torch.device | None = None) -> Tensor:
    """Return `given` as a tensor, or say that `name` is no numbers and what was `expected`."""
    try:
        return torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is not numeric ({error}); pass {expected}.") from error
