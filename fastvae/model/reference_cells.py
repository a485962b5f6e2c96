"""`ReferenceCells`: where the cells of a reference lie, and what is known of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.alignment import is_array_of_cells, values_of_cells
from ..data.categories import factorise
from ..data.frames import joined_obs
from ..data.keys import checked_key, in_words, key_column
from ..errors import InputError, file_path, shown
from .base import State
from .latent_file import KEY, LATENT, read_latent_file
from .provenance import weights_digest
from .saving import read_config, read_weights

if TYPE_CHECKING:
    import pandas as pd


ORIGIN = "origin"
"""Column of obs in the joint file."""


@dataclass(frozen=True, eq=False)
class ReferenceCells:
    """Cells that queries are compared with.

    Attributes
    ----------
    latent
        (N, L) positions.
    obs
        One row per cell.
    digest
        Of the weights that the positions come from; None where that is not known.
    """

    latent: np.ndarray
    obs: pd.DataFrame
    digest: str | None

    def labels(self, labels: Any) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the code of each cell, -1 without a label, and the names of the labels.

        Parameters
        ----------
        labels
            Column or columns of obs, or a value for each cell.

        Raises
        ------
        InputError
            No such column, or another number of values.
        """
        if is_array_of_cells(labels):
            names = self.obs.index.to_numpy()
            return factorise(values_of_cells(names, labels, "labels"), "labels")
        key = checked_key(labels, "labels")
        if key is None:
            raise InputError("labels must name a column of obs, or be a value for each cell")
        return factorise(key_column(self.obs, key, "labels"), f"{in_words(key)} (labels)")


def reference_cells(reference: Any) -> ReferenceCells:
    """Return the cells of a reference.

    Parameters
    ----------
    reference
        A trained model with data, the folder of a run with its latent.h5ad, or an AnnData with the
        positions in ``obsm["X_fastvae"]``.

    Raises
    ------
    InputError
        It is none of these, or the positions are not there.
    """
    if isinstance(reference, ReferenceCells):  # read already
        return reference
    if isinstance(reference, State):
        return cells_of_model(reference)
    if isinstance(reference, (str, os.PathLike)):
        folder = file_path("reference", reference)
        try:
            config = read_config(folder)
            saved = read_latent_file(folder / LATENT)
            digest = weights_digest(read_weights(folder, config))
        except InputError as error:
            raise InputError(f"reference: {error}") from error
        return ReferenceCells(saved.latent, saved.obs, digest)
    from anndata import AnnData

    if not isinstance(reference, AnnData):
        raise InputError(
            "reference must be a trained fastvae.Model, the folder of a run or an AnnData, not "
            f"{shown(reference)}"
        )
    if KEY not in reference.obsm:
        raise InputError(
            f'reference has no obsm["{KEY}"]; put the positions there '
            f'(adata.obsm["{KEY}"] = model.get_latent_representation()), or give the model'
        )
    return ReferenceCells(np.asarray(reference.obsm[KEY]), reference.obs, None)


def cells_of_model(model: State) -> ReferenceCells:
    """Return the own cells of a trained model, and where they lie."""
    store, frames = model._own_store(), model._frames
    assert frames is not None
    return ReferenceCells(
        model._latent_means(store), frames.obs, weights_digest(model.module.state_dict())
    )


def joint_obs(
    reference: pd.DataFrame, query: pd.DataFrame, more: dict[str, Sequence[Any]]
) -> pd.DataFrame:
    """Put the cells of the reference above those of the query.

    Parameters
    ----------
    reference, query
        One row per cell each; the result has the columns that either has.
    more
        Further columns, which take the place of columns of the same name.

    Returns
    -------
    DataFrame
        With a column ``origin`` ("reference" or "query"); one that cells have already is then
        ``own_origin``. Names of cells that are in both end with the origin.
    """
    import pandas as pd

    joined = joined_obs([reference, query]).rename(columns={ORIGIN: f"own_{ORIGIN}"})
    origin = np.repeat(["reference", "query"], [len(reference), len(query)])
    if joined.index.has_duplicates:
        names = [f"{name}-{where}" for name, where in zip(joined.index, origin, strict=True)]
        joined.index = pd.Index(names, dtype=object)
    joined[ORIGIN] = pd.Categorical(origin, ["reference", "query"])
    for name, values in more.items():
        joined[name] = values
    return joined
