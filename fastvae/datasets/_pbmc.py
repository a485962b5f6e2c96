"""Real counts that come with the package: 3,100 blood cells, three batches, two chemistries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

DATA_FILE = Path(__file__).with_name("pbmc.h5ad")


def pbmc() -> AnnData:
    """Load 3,100 peripheral blood mononuclear cells with 2,000 genes.

    Three public 10x Genomics data sets of healthy donors: PBMC 3k (2,700 cells, 3' v1 chemistry)
    and 200 cells each of PBMC 5k and 10k (3' v3, about twice as many molecules per cell).
    The genes are the most variable ones that all three measured, and the usual marker genes.
    Sources, licences and the way the file was made: ``LICENSES.md`` beside this module.

    Returns
    -------
    AnnData
        ``X`` (3100, 2000): CSR float32, the UMI counts as measured.

        ``obs``:

        - ``batch``: ``"pbmc3k_v1"``, ``"pbmc5k_v3"``, ``"pbmc10k_v3"``;
        - ``cell_type``: eight types named alike in all batches, or ``"unknown"``;
        - ``label_source``: where ``cell_type`` comes from: ``"published clusters"`` (3k),
          ``"surface protein"`` (5k and 10k: gates on antibody counts, so independent of ``X``)
          or ``"none"``;
        - ``cluster_label``: the finer published clusters of the 3k cells, else ``"unassigned"``;
        - ``total_umi_all_genes``: UMIs of the cell over all the genes of its source.

        ``var``: gene symbols as names, Ensembl identifiers in ``gene_ids``.

    Raises
    ------
    InputError
        If the data file is missing from the installation.
    """
    import anndata

    if not DATA_FILE.is_file():
        raise InputError(
            f"the embedded data set {DATA_FILE} is missing; reinstall fastvae "
            "(pip install --force-reinstall fastvae-scvi)"
        )
    data = anndata.read_h5ad(DATA_FILE)
    data.X = data.X.astype(np.float32)
    return data
