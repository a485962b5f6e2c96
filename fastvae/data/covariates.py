"""Covariates of cells beside batch and label: columns of ``obs``, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._covariates import CellCovariates
from ..errors import InputError, listed, shown
from .keys import encode, join_codes, key_column

if TYPE_CHECKING:
    import pandas as pd

Categories = tuple[tuple[str, ...], ...]
"""Names of the codes of each categorical covariate."""


@dataclass(frozen=True)
class CovariateKeys:
    """Columns of obs with covariates, each a column by itself.

    Attributes
    ----------
    categorical, continuous
        With categories, and with numbers.
    size_factor
        With the size factors; None where expression is multiplied by the library size.
    """

    categorical: tuple[str, ...] = ()
    continuous: tuple[str, ...] = ()
    size_factor: str | None = None

    @classmethod
    def checked(cls, categorical: Any, continuous: Any, size_factor: Any) -> CovariateKeys:
        """Take the arguments of `Model`: names or lists of them, and a name; None is none.

        Raises
        ------
        InputError
            They are something else, or name a column twice.
        """
        keys = cls(
            _names("categorical_covariate_keys", categorical),
            _names("continuous_covariate_keys", continuous),
            size_factor,
        )
        if size_factor is not None and not isinstance(size_factor, str):
            raise InputError(
                f"size_factor_key must be the name of a column of obs, not {shown(size_factor)}"
            )
        names = keys.columns
        for name in names:
            if names.count(name) > 1:
                raise InputError(
                    f"{shown(name)} is named twice among categorical_covariate_keys, "
                    "continuous_covariate_keys and size_factor_key; name each column once"
                )
        return keys

    @property
    def columns(self) -> tuple[str, ...]:
        """All of these columns."""
        last = () if self.size_factor is None else (self.size_factor,)
        return *self.categorical, *self.continuous, *last


def _names(option: str, given: Any) -> tuple[str, ...]:
    """Return the names of columns, of one or of a list."""
    if given is None:
        return ()
    if isinstance(given, str):
        return (given,)
    wanted = "a list of names of columns of obs"
    names = [str(n) if isinstance(n, np.str_) else n for n in listed(option, given, wanted, 1000)]
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{option} must be {wanted}, not {shown(given)}")
    return tuple(names)


def covariates_of_cells(
    obs: pd.DataFrame, keys: CovariateKeys | None, known: Sequence[Sequence[str]] | None = None
) -> tuple[CellCovariates, Categories]:
    """Read the covariates of the cells of one data set; see `covariates_of_files`."""
    return covariates_of_files([("", lambda _: obs)], keys or CovariateKeys(), known)


def covariates_of_files(
    files: Sequence[tuple[str, Callable[[Any], pd.DataFrame]]],
    keys: CovariateKeys,
    known: Sequence[Sequence[str]] | None = None,
) -> tuple[CellCovariates, Categories]:
    """Read the covariates of the cells of files, one after another.

    Parameters
    ----------
    files
        What messages call each, and a function that returns obs with given columns, such as
        `CountFile.column`.
    keys
        Columns of obs.
    known
        Categories of each categorical covariate of a saved model, whose codes are kept.

    Returns
    -------
    covariates
        Arrays of the shapes and dtypes that `Minibatch` has, for all cells.
    categories
        Of each categorical covariate, in pandas' order in the first file, then as further files
        bring them.

    Raises
    ------
    InputError
        A column that is not there, missing values, categories that are not known, numbers that are
        not finite, or size factors that are not above 0. The message names column and cell.
    """
    if not keys.columns:
        return CellCovariates(), ()
    n_categorical = len(keys.categorical)
    coded: list[list[tuple[np.ndarray, tuple[str, ...]]]] = [[] for _ in range(n_categorical)]
    continuous, factors = [], []
    for source, column in files:
        try:
            obs = column(keys.columns)
            for k, name in enumerate(keys.categorical):
                among = None if known is None else known[k]
                coded[k].append(encode(obs, name, among, "covariate"))
            numbers = [_numbers(obs, n, "continuous_covariate_keys") for n in keys.continuous]
            continuous.append(np.stack(numbers, axis=1) if numbers else np.empty((0, 0)))
            factors.append(_size_factors(obs, keys.size_factor))
        except InputError as error:
            raise InputError(f"{source}: {error}" if source else str(error)) from error
    joined = [
        join_codes(parts, None if known is None else known[k]) for k, parts in enumerate(coded)
    ]
    covariates = CellCovariates(
        np.stack([codes for codes, _ in joined], axis=1) if joined else None,
        np.concatenate(continuous) if keys.continuous else None,
        np.concatenate(factors) if keys.size_factor is not None else None,
    )
    return covariates, tuple(categories for _, categories in joined)


def _numbers(obs: pd.DataFrame, name: str, option: str) -> np.ndarray:
    """Return the numbers of a column, (N,) float32."""
    column = key_column(obs, name, option)
    where = f"obs[{name!r}] ({option})"
    missing = np.asarray(column.isna())
    if missing.any():
        raise InputError(
            f"{where} is missing for {int(missing.sum())} of {len(obs)} cells (first: "
            f"{_first(obs, missing)}); fill it, or drop these cells"
        )
    try:
        if column.dtype.kind not in "biufO":
            raise TypeError(str(column.dtype))
        with np.errstate(over="ignore"):
            values = column.to_numpy().astype(np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        wrong = np.array([not _is_number(value) for value in column])
        raise InputError(
            f"{where} has {shown(column.iloc[int(np.argmax(wrong))])}, which is no number (first "
            f"in {_first(obs, wrong)}); give a column of numbers, or name it among "
            "categorical_covariate_keys"
        ) from error
    endless = ~np.isfinite(values)
    if endless.any():
        raise InputError(
            f"{where} is infinite, or too large for float32, in {int(endless.sum())} of "
            f"{len(obs)} cells (first: {_first(obs, endless)}); give finite numbers"
        )
    return values


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _size_factors(obs: pd.DataFrame, name: str | None) -> np.ndarray:
    """Return the size factors (N, 1) float32; (0, 1) where there are none."""
    if name is None:
        return np.empty((0, 1), dtype=np.float32)
    values = _numbers(obs, name, "size_factor_key")
    low = values <= 0
    if low.any():
        raise InputError(
            f"obs[{name!r}] (size_factor_key) is not above 0 in {int(low.sum())} of {len(obs)} "
            f"cells (first: {_first(obs, low)}, {values[int(np.argmax(low))]:g}); its logarithm "
            "is used, so give positive size factors or drop these cells"
        )
    return values[:, None]


def _first(obs: pd.DataFrame, which: np.ndarray) -> str:
    """Return the name of the first of these cells."""
    return repr(str(obs.index[int(np.argmax(which))]))
