"""obs and var of data in memory, and obs of several files as one data frame."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._words import a_few
from ..errors import InputError
from .alignment import positions_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True, eq=False)
class KnownFrames:
    """obs and var as they were read."""

    obs: pd.DataFrame
    var: pd.DataFrame


@dataclass(frozen=True, eq=False)
class LiveFrames:
    """obs of an AnnData as it is now, for the cells that were read from it; var as it was read.

    The AnnData is not kept in memory for this: once nothing else holds it, obs is as it was read.

    Attributes
    ----------
    adata
        Reference to the AnnData.
    read
        Its obs as it was read.
    """

    adata: weakref.ref[AnnData]
    read: pd.DataFrame
    var: pd.DataFrame

    @property
    def obs(self) -> pd.DataFrame:
        """One row per cell, in the order in which the counts were read.

        Raises
        ------
        InputError
            Cells were taken out of the AnnData, or renamed.
        """
        adata = self.adata()
        if adata is None:
            return self.read
        names = self.read.index.to_numpy()
        positions, missing = positions_of(names, adata.obs_names)
        if missing:
            raise InputError(
                f"{len(missing):,} of the {len(names):,} cells of the model are no longer in its "
                f"AnnData under their names ({a_few(missing)}): it was subset, or its cells were "
                "renamed. To ask about the cells as they are now give data=adata"
            )
        same = len(positions) == adata.n_obs and bool((positions == np.arange(adata.n_obs)).all())
        return adata.obs if same else adata.obs.iloc[positions]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles have obs as it was read: they have no AnnData to look at."""
        return KnownFrames, (self.read, self.var)


def joined_obs(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put frames one below the other, with the columns that any has.

    The merge is that of ``anndata.concat(join="outer")``: missing values stay missing, categories
    are the union, booleans that a frame lacks become nullable.

    Parameters
    ----------
    frames
        One row per cell each.
    """
    import anndata

    with warnings.catch_warnings():
        # Repeated names do no harm here: cells are addressed by position.
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        # pandas on columns that are missing throughout in one of the frames
        warnings.filterwarnings("ignore", category=FutureWarning)
        objects = [anndata.AnnData(obs=frame) for frame in frames]
        joined: pd.DataFrame = anndata.concat(objects, join="outer").obs
    return joined
