"""The parts of ``fastvae demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._words import is_no_category
from ..plots.colours import category_codes
from ..report.mixing import mixing_scores, score_lines
from ..report.neighbours import principal_components

if TYPE_CHECKING:
    from anndata import AnnData


MARKERS = ("CD3D", "MS4A1", "LYZ", "NKG7", "PPBP")
"""T cells, B cells, monocytes, natural killer cells, platelets."""

DEMO_FIT: dict[str, Any] = {
    "max_epochs": 100,
    "learning_rate": 2e-3,
    "n_epochs_kl_warmup": 20,
}
"""Few epochs, so they learn at twice the usual rate and warm the KL term up early."""


def demo_data() -> AnnData:
    """Return the embedded blood cells."""
    from ..datasets import pbmc

    return pbmc()


def mixing_lines(adata: AnnData, latent: np.ndarray) -> list[str]:
    """Say how batches mix and labels keep together, before (principal components) and after."""
    spaces = {"before": principal_components(adata.X), "after": latent}
    batch, label = (category_codes(adata.obs[name]) for name in ("batch", "cell_type"))
    known = np.array([not is_no_category(name) for name in label[1]])
    codes = np.where(known[label[0]], label[0], -1)
    return score_lines(mixing_scores(spaces, batch[0], codes))
