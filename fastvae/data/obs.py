"""obs of several files as one data frame."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


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
