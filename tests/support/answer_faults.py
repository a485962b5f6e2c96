"""Bad inputs of labels, transferred and learned, and of answers that go into files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from count_data import annotated

from fastvae import Model
from fastvae.cli.embed import insertion
from fastvae.cli.joint import Joint


def _model(**options: Any) -> Model:
    model = Model(annotated(), n_latent=2, n_hidden=4, batch_key="batch")
    return model.fit(1, **{"seed": 0, "progress": False, "device": "cpu", **options})


def _known(labels: str = "T") -> anndata.AnnData:
    """A reference whose positions are in obsm."""
    adata = annotated()
    adata.obsm["X_fastvae"] = np.zeros((adata.n_obs, 2), dtype=np.float32)
    adata.obs["cell_type"] = labels
    return adata


def _labelled(labels: Any = "cell_type", reference: Any = None, **options: Any) -> Any:
    return _model().transfer_labels(labels, _known() if reference is None else reference, **options)


def _of_other_dimensions() -> anndata.AnnData:
    adata = _known()
    adata.obsm["X_fastvae"] = np.zeros((adata.n_obs, 3))
    return adata


def _mapped(folder: Path, labels: list[str] | None, freeze: bool | str, most: float | None) -> Any:
    """Check the options of ``fastvae map`` about labels."""
    return Joint.checked(folder / "run", folder / "mapped", labels, freeze, most, 15)


def _learning(labels: Any = "cell_type", unlabeled: Any = "?", **options: Any) -> Model:
    return Model(
        annotated(),
        n_latent=2,
        n_hidden=4,
        labels_key=labels,
        unlabeled_category=unlabeled,
        **options,
    )


def _expression(folder: Path, name: str, **options: Any) -> None:
    (folder / "taken.h5ad").write_bytes(b"")
    _model().write_normalized_expression(folder / name, progress=False, **options)


def _file(folder: Path) -> Path:
    annotated().write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def _store(folder: Path) -> Path:
    (folder / "cells.zarr").mkdir()
    return folder / "cells.zarr"


def _twice(folder: Path) -> None:
    path = _file(folder)
    for _ in range(2):
        _model().write_latent_into(path)


CASES: list[tuple[str, Callable[[Path], Any]]] = [
    ("labels of a column that the reference lacks", lambda d: _labelled("celltype")),
    ("labels of other cells", lambda d: _labelled(np.array(["T", "B"]))),
    ("a reference in which no cell has a label", lambda d: _labelled(reference=_known("Unknown"))),
    ("a reference without positions", lambda d: _labelled(reference=annotated())),
    ("positions of other dimensions", lambda d: _labelled(reference=_of_other_dimensions())),
    ("positions of other weights", lambda d: _labelled(reference=_model(seed=1))),
    ("labels for the reference itself", lambda d: _model().transfer_labels("batch")),
    ("n_neighbors=0", lambda d: _labelled(n_neighbors=0)),
    ("max_uncertainty=2", lambda d: _labelled(max_uncertainty=2)),
    ("--max-uncertainty without --labels", lambda d: _mapped(d, None, True, 0.3)),
    ("--labels with --freeze none", lambda d: _mapped(d, ["cell_type"], False, None)),
    ("labels to learn without a column", lambda d: _learning(None)),
    ("a linear classifier of no labels", lambda d: _learning(None, None, linear_classifier=True)),
    ("labels to learn with gene-label", lambda d: _learning(dispersion="gene-label")),
    ("labels to learn on a simplex", lambda d: _learning(latent_distribution="ln")),
    ("labels to learn, and a value that is no name", lambda d: _learning(unlabeled=["?"])),
    ("labels by a model that has learned none", lambda d: _model().predict()),
    ("labels to learn from a model without a column", lambda d: _model().with_labels("?")),
    ("denoised expression of an unknown kind", lambda d: _expression(d, "out.csv")),
    ("denoised expression over a file that is there", lambda d: _expression(d, "taken.h5ad")),
    ("denoised expression of no gene", lambda d: _expression(d, "out.h5ad", genes=[])),
    ("a latent space into a zarr store", lambda d: _model().write_latent_into(_store(d))),
    ("a latent space into a file that has one", _twice),
    ("a latent space into several files", lambda d: insertion([_file(d)] * 2, overwrite=False)),
    ("a latent space under a path", lambda d: _model().write_latent_into(_file(d), key="a/b")),
]
