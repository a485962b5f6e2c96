"""One input: names, columns of obs, and rows of counts, wherever they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ..checks import Origin, canonicalise, check_axes, check_counts
from ..genes import Genes
from ..keys import Key
from .matrix import to_csr
from .row_ranges import MemoryRows, Rows

if TYPE_CHECKING:
    import pandas as pd


class CountFile:
    """An opened input: names, obs, var and counts.

    Attributes
    ----------
    source
        What messages call it.
    rows
        Its counts.
    var_names
        (G,) array of str.
    is_h5ad
        Whether it is an .h5ad file.
    checked
        Whether its counts have been checked already.
    clean
        Whether every row is sorted and without repeated or zero entries; the check sets it.
    name
        Its name among the files of a data set.
    batch_key
        Its own column of obs with the batch, or None.
    batch
        The batch of all of its cells, where no column of obs has it.
    """

    source: str
    rows: Rows
    var_names: np.ndarray
    is_h5ad: bool = False
    checked: bool = False
    clean: bool = True
    name: str = ""
    batch_key: Key | None = None
    batch: str | None = None

    @property
    def n_cells(self) -> int:
        """N."""
        return self.rows.shape[0]

    def origin(self) -> Origin:
        """Return what the checks of counts name."""
        raise NotImplementedError

    def columns(self) -> list[str]:
        """Return the names of the columns of obs."""
        raise NotImplementedError

    def column(self, key: Key | None) -> pd.DataFrame:
        """Return obs with the columns of `key` alone, or the names of all if one is not there."""
        raise NotImplementedError

    def cell_names(self) -> np.ndarray:
        """Return the names of the cells."""
        raise NotImplementedError

    def obs(self) -> pd.DataFrame:
        """Return obs."""
        raise NotImplementedError

    def var(self) -> pd.DataFrame:
        """Return var, its genes named as is wanted."""
        raise NotImplementedError

    def counts(self) -> sp.csr_matrix:
        """Return all counts in memory: CSR float32 (N, G), canonical and checked.

        Raises
        ------
        InputError
            They cannot be read, do not fit into the memory, or are not counts.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; its counts cannot be read any more."""

    def batches(self, key: Key | None) -> pd.DataFrame:
        """Return a frame with the batch of each cell in its column `key`, as in `column`."""
        import pandas as pd

        if self.batch is None or key is None:
            return self.column(self.batch_key)
        return pd.DataFrame({key: constant(self.batch, self.n_cells)})

    def joined(self, key: Key | None) -> pd.DataFrame:
        """Return obs, with the batch in its column `key` where that is not None."""
        frame = self.obs().copy()
        if key is not None and self.batch is not None:
            frame[key] = constant(self.batch, self.n_cells)
        elif isinstance(self.batch_key, str) and self.batch_key in frame.columns:
            frame[key] = frame[self.batch_key]
        return frame

    @cached_property
    def genes(self) -> Genes:
        """Names and ids of the genes."""
        return Genes.of(self.var())


def constant(name: str, length: int) -> pd.Categorical:
    """Return a column that has `name` everywhere."""
    import pandas as pd

    return pd.Categorical.from_codes(np.zeros(length, dtype=np.int8), categories=[name])


class MemoryFile(CountFile):
    """Counts that are in memory, checked: of an object, or of a file that has to be read whole.

    Parameters
    ----------
    source
        What messages call it.
    counts
        CSR float32 (N, G), canonical and checked; owned by the file.
    obs, var
        Their frames, owned by the file.
    """

    checked = True

    def __init__(
        self, source: str, counts: sp.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame
    ) -> None:
        self.source = source
        self.rows = MemoryRows(source, counts)
        self.var_names = np.asarray(var.index, dtype=object)
        self._counts = counts
        self._obs = obs
        self._var = var

    def origin(self) -> Origin:
        """See `CountFile`."""
        return Origin(self.source, "", self._obs.index, self._var.index)

    def columns(self) -> list[str]:
        """See `CountFile`."""
        return [str(name) for name in self._obs.columns]

    def column(self, key: Key | None) -> pd.DataFrame:
        """See `CountFile`."""
        return self._obs

    def cell_names(self) -> np.ndarray:
        """See `CountFile`."""
        return np.asarray(self._obs.index, dtype=object)

    def obs(self) -> pd.DataFrame:
        """See `CountFile`."""
        return self._obs

    def var(self) -> pd.DataFrame:
        """See `CountFile`."""
        return self._var

    def counts(self) -> sp.csr_matrix:
        """See `CountFile`."""
        return self._counts


def assemble(
    matrix: Any, obs: pd.DataFrame, var: pd.DataFrame, origin: Origin, allow_fractional: bool
) -> MemoryFile:
    """Check names, copy the matrix, check the counts, and join the three.

    Raises
    ------
    InputError
        As `check_axes`, `to_csr` and `check_counts`.
    """
    check_axes(origin)
    counts = to_csr(matrix, origin.shape, origin.where)
    return checked_file(counts, obs, var, origin, allow_fractional)


def checked_file(
    counts: sp.csr_matrix,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    origin: Origin,
    allow_fractional: bool,
) -> MemoryFile:
    """Bring `counts` (owned by the caller) to canonical form, check them, join the three.

    Raises
    ------
    InputError
        As `check_counts`.
    """
    canonicalise(counts)
    check_counts(counts, origin, allow_fractional=allow_fractional)
    return MemoryFile(origin.source, counts, obs, var)


class LateNames:
    """Names that are read only if a message needs one.

    Parameters
    ----------
    length
        How many there are.
    names
        Reads them.
    """

    def __init__(self, length: int, names: Callable[[], np.ndarray]) -> None:
        self._length = length
        self._names = names

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at: int) -> str:
        return str(self._names()[at])
