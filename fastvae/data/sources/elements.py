"""Frames and arrays as anndata stores them, in HDF5 files and zarr stores."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from ..._words import reason
from ...errors import InputError
from ..genes import named
from .slots import Slot

if TYPE_CHECKING:
    import pandas as pd


def read_frame(group: Any, key: str, source: str) -> pd.DataFrame:
    """Read a data frame of an HDF5 file or a zarr store, as ``anndata.read_h5ad`` does.

    Raises
    ------
    InputError
        It cannot be read.
    """
    from pandas.api.types import is_string_dtype

    frame = read_element(group[key], key, source)
    if not is_string_dtype(frame.index):
        frame.index = frame.index.astype(str)
    return frame


def read_element(element: Any, what: str, source: str) -> Any:
    """Read anything that anndata can.

    Raises
    ------
    InputError
        It cannot be read.
    """
    from anndata.io import read_elem

    try:
        with warnings.catch_warnings():
            # anndata before 0.8 wrote none, and its files are read all the same
            warnings.filterwarnings("ignore", message=".* was written without encoding metadata")
            return read_elem(element)
    except Exception as error:  # anndata wraps what its readers raise in types of its own
        raise InputError(
            f"{source}: {what} cannot be read ({reason(error)}); the file is damaged or was "
            "written by a newer anndata: write it again, or update anndata"
        ) from error


def wanted_names(var: pd.DataFrame, wanted: Slot, source: str) -> pd.DataFrame:
    """Return `var` with the genes named as is asked for.

    Raises
    ------
    InputError
        As `named`.
    """
    return named(var, wanted.gene_names, source, required=wanted.names_asked_for)
