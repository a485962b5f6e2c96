"""Models that annbatch feeds from disk: with the same cells in the same order, scvi-tools' run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

scvi = pytest.importorskip("scvi")
pytest.importorskip("annbatch")
if not hasattr(scvi.model.SCVI, "setup_annbatch"):
    pytest.skip("scvi-tools before 1.5 has no setup_annbatch", allow_module_level=True)
from scvi_native import adata, same_history  # noqa: E402

from fastvae.integrations import scvi_tools as door  # noqa: E402
from fastvae.integrations.scvi_tools import _streamed_cells  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata"]  # a fixture

SIZE = 64


@pytest.fixture
def stored(adata: Any, tmp_path: Path) -> Path:
    for column in ("batch", "label", "donor"):
        adata.obs[column] = adata.obs[column].astype("category")
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path


def opened(cls: Any, stored: Path, **options: Any) -> Any:
    return cls.setup_annbatch(
        collection_path=str(stored / "cells.zarr"),
        paths=[str(stored / "cells.h5ad")],
        batch_key="batch",
        batch_size=SIZE,
        chunk_size=SIZE,
        preload_nchunks=2,
        preload_to_gpu=False,
        **options,
    )


def trained(cls: Any, cells: Any, model: Any = None, **options: Any) -> Any:
    """Train on the cells in the order of the file, which both classes share."""
    scvi.settings.seed = 0
    one = cls(registry=cells.registry, **{"n_hidden": 16, "n_latent": 4, **(model or {})})
    one.train(
        3,
        datamodule=cells,
        shuffle_set_split=False,
        accelerator="cpu",
        enable_progress_bar=False,
        **options,
    )
    return one


def both(stored: Path, kind: str = "SCVI", setup: Any = None, **options: Any) -> list[Any]:
    found = []
    for classes in (door, scvi.model):
        cls = getattr(classes, kind)
        cells = opened(cls, stored, **(setup or {}))
        found.append((trained(cls, cells, **options), cells))
    (own, _), (other, _) = found
    same_history(own, other, rtol=2e-4)
    latent = [
        model.get_latent_representation(dataloader=cells.inference_dataloader())
        for model, cells in found
    ]
    np.testing.assert_allclose(*latent, atol=5e-3)
    return found[0]


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Layouts of the counts that the door's models encode."""
    seen = []
    plain = door._module.Fused._regular_inference

    def inference(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(x.layout)
        return plain(self, x, *args, **kwargs)

    monkeypatch.setattr(door._module.Fused, "_regular_inference", inference)
    return seen


CASES: dict[str, dict[str, Any]] = {
    "SCVI": {},
    "validation": {"train_size": 0.8, "check_val_every_n_epoch": 1},
    "covariates": {
        "setup": {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]},
        "model": {"encode_covariates": True},
    },
    "LinearSCVI": {"kind": "LinearSCVI"},
    "SCANVI": {"kind": "SCANVI", "setup": {"labels_key": "label", "unlabeled_category": "c"}},
}


@pytest.mark.parametrize("name", CASES)
def test_a_streamed_run_is_theirs(stored: Path, layouts: list[Any], name: str) -> None:
    both(stored, **CASES[name])
    steps = 3 * -(-387 // SIZE)
    assert layouts[:steps] == [torch.sparse_csr] * steps


def test_counts_are_dense_where_the_module_wants_them_so(stored: Path, layouts: list[Any]) -> None:
    own, _ = both(stored, model={"gene_likelihood": "normal"})
    assert torch.sparse_csr not in layouts
    table = own.history["train_loss"]
    assert np.isfinite(table.to_numpy(float)).all()


def test_differences_are_found_from_a_loader(stored: Path) -> None:
    own, cells = both(stored)
    table = own.differential_expression(
        dataloader=cells.inference_dataloader(),
        groupby="batch",
        group1="batch_0",
        group2="batch_1",
    )
    assert len(table) == 50


@pytest.mark.parametrize("form", ["torch", "scipy", "unsorted"])
def test_a_minibatch_holds_what_annbatch_read(stored: Path, form: str) -> None:
    cells = opened(door.SCVI, stored)
    batch = next(iter(cells.train_dataloader()))
    expected = cells.on_before_batch_transfer(batch, 0)
    if form != "torch":
        counts = sp.csr_matrix(expected["X"].numpy())
        if form == "unsorted":
            counts.indices, counts.data = counts.indices[::-1].copy(), counts.data[::-1].copy()
            counts = sp.csr_matrix(
                (counts.data, counts.indices, (counts.nnz - counts.indptr)[::-1].copy()),
                shape=counts.shape,
            )[::-1]
        batch = {**batch, "X": counts}
    found = _streamed_cells.StreamedCells(cells).on_before_batch_transfer(batch, 0)
    assert found.keys() == expected.keys()
    assert found["X"].layout == torch.sparse_csr
    for key, value in expected.items():
        got = found[key].to_dense() if key == "X" else found[key]
        torch.testing.assert_close(got, value)
