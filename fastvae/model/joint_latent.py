"""Queries beside their reference: `Model.transfer_labels`, `Model.write_joint_latent`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._files import check_new_file
from .._words import is_no_category
from ..errors import InputError, file_path, real_number, true_or_false, whole_number
from ..plots.projection import umap_of
from .base import EVALUATION_BATCH, State
from .label_transfer import transferred_labels
from .latent_file import KEY, UMAP_KEY, write_latent_file
from .new_data import READING, Reading
from .provenance import weights_digest
from .reference_cells import ReferenceCells, cells_of_model, joint_obs, reference_cells
from .scvi_names import with_scvi_names
from .selection import cell_rows

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Unpack

N_NEIGHBORS = 15

UNKNOWN = "Unknown"
"""The label of a cell whose vote is too uncertain."""

LABEL, UNCERTAINTY = "transferred_label", "transfer_uncertainty"
"""Columns of obs in the joint file."""


@dataclass(frozen=True)
class Rule:
    """How neighbours vote, and which votes count.

    Raises
    ------
    InputError
        No neighbour, or an uncertainty that is no share.
    """

    n_neighbors: int = N_NEIGHBORS
    max_uncertainty: float | None = None

    def __post_init__(self) -> None:
        number = whole_number("n_neighbors", self.n_neighbors, minimum=1)
        object.__setattr__(self, "n_neighbors", number)
        if self.max_uncertainty is not None:
            share = real_number("max_uncertainty", self.max_uncertainty, most=1.0)
            object.__setattr__(self, "max_uncertainty", share)


class JointAnswers(State):
    """Cells of a query beside those of a reference."""

    @with_scvi_names(READING)
    def transfer_labels(
        self,
        labels: Any,
        reference: Any = None,
        data: Any = None,
        cells: Any = None,
        *,
        n_neighbors: int = N_NEIGHBORS,
        max_uncertainty: float | None = None,
        batch_size: int = EVALUATION_BATCH,
        **reading: Unpack[Reading],
    ) -> pd.DataFrame:
        r"""Label cells by the nearest cells of a reference in the latent space.

        Parameters
        ----------
        labels
            Column of the reference's obs (several for combinations), or a value for each of its
            cells. Reference cells without a value have no vote, and neither have those whose label
            says that there is none: "unknown", "unassigned", "unlabeled", "nan" and the like.
        reference
            Cells that have labels: the model that this one was mapped onto, with its data; the
            folder of its run; or an AnnData with its positions in ``obsm["X_fastvae"]``. None is
            the model's own cells, for the labels of new `data`.
        data, cells, batch_size, **reading
            The cells that get labels, as in the notes of `Model`; by default the model's own.
        n_neighbors
            Reference cells that vote on the label of a cell, k.
        max_uncertainty
            Cells with a higher uncertainty get the label "Unknown", in the spelling of the
            reference if it has one. None keeps all; scArches' users take 0.2 or 0.3.

        Returns
        -------
        DataFrame
            One row per cell: ``label`` (categorical), and ``uncertainty`` (float64), 1 minus the
            share of the label in the weight of all neighbours.

        Raises
        ------
        InputError
            Also if the positions of the reference come from other weights: a model that was mapped
            with ``freeze=False`` has no latent space in common with its reference.

        Notes
        -----
        A neighbour at distance :math:`d_i` has the weight of a Gaussian kernel with the scale of
        the neighbourhood,

        .. math::
            w_i = \exp\left(-\frac{d_i^2}{2 s^2}\right),
            \qquad s^2 = \frac{1}{k} \sum_{j=1}^k d_j^2 .

        The idea is that of scArches (Lotfollahi et al. 2022), whose kernel
        :math:`\exp(-d_i \sigma^2 / 4)`, with the standard deviation :math:`\sigma` of the
        distances, depends on the unit of the latent space.
        """
        rule = Rule(n_neighbors, max_uncertainty)
        if reference is None and data is None:
            raise InputError(
                "the model's own cells cannot be labelled by themselves; give reference= (the "
                "model that this one was mapped onto), or data= with the cells that get labels"
            )
        known = self._known_cells(reference)
        codes, names = known.labels(labels)
        store, _ = self._opened_to_encode(data, reading)
        rows = cell_rows(cells, store)
        latent = self._latent_means(store, rows, batch_size)
        return label_table(known.latent, codes, names, latent, store.cell_names[rows], rule)

    @with_scvi_names()
    def write_joint_latent(
        self,
        path: str | os.PathLike[str],
        reference: Any,
        labels: Any = None,
        *,
        n_neighbors: int = N_NEIGHBORS,
        max_uncertainty: float | None = None,
        umap: bool = True,
        overwrite: bool = False,
    ) -> pd.DataFrame | None:
        """Write the reference's cells and the model's own to one light .h5ad, without counts.

        Parameters
        ----------
        path
            The file; it is written whole or not at all. ``obsm["X_fastvae"]`` has the latent space,
            obs the columns of both and ``origin``, "reference" or "query" (a column of that name
            is then ``own_origin``).
        reference
            As in `transfer_labels`.
        labels, n_neighbors, max_uncertainty
            As in `transfer_labels`. With `labels`, obs has ``transferred_label``, in which cells of
            the reference have their own, and ``transfer_uncertainty``, missing for these.
        umap
            Also write the UMAP of all cells to ``obsm["X_umap"]``.
        overwrite
            Replace a file that is there.

        Returns
        -------
        DataFrame or None
            The table of `transfer_labels`, if there are `labels`.

        Raises
        ------
        InputError
            As `transfer_labels`; or the file is there.
        """
        import pandas as pd

        rule = Rule(n_neighbors, max_uncertainty)
        umap = true_or_false("umap", umap)
        overwrite = true_or_false("overwrite", overwrite)
        target = check_new_file(file_path("path", path), overwrite=overwrite)
        known, own = self._known_cells(reference), cells_of_model(self)
        more: dict[str, Any] = {}
        table = None
        if labels is not None:
            codes, names = known.labels(labels)
            table = label_table(known.latent, codes, names, own.latent, own.obs.index, rule)
            theirs = np.array([*names, None], dtype=object)[codes]
            more[LABEL] = pd.Categorical([*theirs, *table["label"]])
            more[UNCERTAINTY] = np.append(np.full(len(theirs), np.nan), table["uncertainty"])
        latent = np.concatenate([known.latent, own.latent]).astype(np.float32)
        obsm = {KEY: latent}
        if umap and (found := umap_of(latent)) is not None:
            obsm[UMAP_KEY] = found.astype(np.float32)
        var = pd.DataFrame(index=pd.Index(self.gene_names, dtype=object))
        obs = joint_obs(known.obs, own.obs, more)
        write_latent_file(target, obsm, obs, var, self._provenance())
        return table

    def _known_cells(self, reference: Any) -> ReferenceCells:
        """Return the reference's cells, if they lie in the latent space of this model."""
        if reference is None or reference is self:
            return cells_of_model(self)
        known = reference_cells(reference)
        if known.digest != weights_digest(self.module.state_dict()):
            if self.origin.get("freeze") is False:
                raise InputError(
                    "freeze=False trained all weights, so that the query has no latent space in "
                    "common with the reference; map with freeze=True, 'decoder' or 'encoder'"
                )
            if known.digest not in (None, self.origin.get("reference_sha256")):
                raise InputError(
                    "the positions of the reference come from other weights than those that this "
                    "model was mapped onto; give the reference that it was mapped onto"
                )
        if known.latent.shape[1:] != (self._setup.options.n_latent,):
            raise InputError(
                f"the positions of the reference have shape {known.latent.shape}; expected "
                f"(cells, {self._setup.options.n_latent})"
            )
        return known


def label_table(
    reference: np.ndarray,
    codes: np.ndarray,
    names: tuple[str, ...],
    query: np.ndarray,
    cells: Any,
    rule: Rule,
) -> pd.DataFrame:
    """Return the label and the uncertainty of each query cell; see `Model.transfer_labels`."""
    import pandas as pd

    categories = [name for name in names if not is_no_category(name)]
    voting = np.array([*(_place(categories, name) for name in names), -1])[codes]
    vote = transferred_labels(reference, voting, query, rule.n_neighbors)
    code = vote.code
    if rule.max_uncertainty is not None:
        # as the reference spells it, so that there are not two names for it
        unknown = next((name for name in names if name.lower() == UNKNOWN.lower()), UNKNOWN)
        uncertain = vote.uncertainty > rule.max_uncertainty
        code = np.where(uncertain, len(categories), code)
        categories.append(unknown)
    columns = {
        "label": pd.Categorical.from_codes(code, categories),
        "uncertainty": vote.uncertainty,
    }
    return pd.DataFrame(columns, index=pd.Index(cells, dtype=object))


def _place(names: list[str], name: str) -> int:
    """Return the position of a name among others, -1 where it is none of them."""
    return names.index(name) if name in names else -1
