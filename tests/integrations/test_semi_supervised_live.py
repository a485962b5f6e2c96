"""Semi-supervised models beside scvi-tools' SCANVI: first weights, losses, gradients, labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_data
from witness import assert_parity

from fastvae import InputError
from fastvae._covariates import CellCovariates
from fastvae.integrations.convert import from_scvi_tools, to_scvi_tools
from fastvae.vae.semi_supervised import LabelledCells, SemiSupervisedVAE

scvi = pytest.importorskip("scvi")

pytestmark = pytest.mark.filterwarnings("ignore")

N, M, G, K, C = 30, 12, 19, 3, 4

CASES: dict[str, dict[str, Any]] = {
    "zinb": {},
    "nb, two layers": {"likelihood": "nb", "n_layers": 2, "encode_covariates": True},
    "linear classifier": {"linear_classifier": True, "dispersion": "gene-batch"},
    "learned library": {"use_observed_lib_size": False},
    "poisson, gene-cell": {"likelihood": "poisson", "dispersion": "gene-cell"},
    "covariates": {
        "encode_covariates": True,
        "n_cats_per_cov": [2, 4],
        "n_continuous_cov": 2,
        "use_size_factor_key": True,
    },
}


def tensors(n_cells: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    number = torch.arange(n_cells)
    return {
        "X": torch.poisson(torch.full((n_cells, G), 0.7), generator=generator)
        + (number % G == 0)[:, None],
        "batch": number[:, None] % K,
        "labels": number[:, None] % C,
        "extra_categorical_covs": torch.stack([number // 3 % 2, number // 2 % 4], 1),
        "extra_continuous_covs": torch.randn(n_cells, 2, generator=generator),
        "size_factor": torch.rand(n_cells, 1, generator=generator) + 0.5,
    }


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_scvi_tools(name: str) -> None:
    options = dict(CASES[name])
    likelihood = options.pop("likelihood", "zinb")
    options = {"n_batch": K, "n_labels": C, "n_hidden": 8, "n_latent": 3, **options}
    options.setdefault("use_observed_lib_size", True)
    cells, known = tensors(N, 0), tensors(M, 1)
    prior: dict[str, Any] = {}
    if not options["use_observed_lib_size"]:
        prior = {
            f"library_log_{what}": np.full((1, K), 1.5, np.float32) for what in ("means", "vars")
        }
    torch.manual_seed(1)
    theirs = scvi.module.SCANVAE(G, gene_likelihood=likelihood, **options, **prior)
    torch.manual_seed(1)
    ours = SemiSupervisedVAE(G, reconstruction_loss=likelihood, **options)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("library_log")}
    assert state.keys() == ours.state_dict().keys()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key]), key
    more = [
        CellCovariates(*(one[f"extra_{kind}_covs"] for kind in ("categorical", "continuous")))
        for one in (cells, known)
    ]
    more[0] = more[0]._replace(size_factor=cells["size_factor"])
    if "n_cats_per_cov" not in options:
        more = [CellCovariates(), CellCovariates()]
        for one in (cells, known):
            del one["size_factor"], one["extra_categorical_covs"], one["extra_continuous_covs"]
    theirs.eval(), ours.eval()
    torch.manual_seed(2)
    given = {"labelled_tensors": known, "classification_ratio": 50, "kl_weight": 0.7}
    _, _, want = theirs(cells, loss_kwargs=given)
    want.loss.backward()

    labelled = LabelledCells(known["X"].to_sparse_csr(), known["labels"], known["batch"], more[1])
    local = (torch.full((N, 1), 1.5),) * 2 if prior else (None, None)
    torch.manual_seed(2)
    reconstruction, kl, classification = ours(
        cells["X"].to_sparse_csr(), *local, cells["batch"], labelled=labelled, **more[0].given()
    )
    loss = (reconstruction + 0.7 * kl).mean() + 50 * classification
    loss.backward()
    assert_parity(classification, want.classification_loss, "cross-entropy")
    assert_parity(reconstruction.sum(), want.reconstruction_loss_sum, "reconstruction")
    assert_parity(kl.sum(), want.kl_local_sum, "divergence")
    assert_parity(loss, want.loss, "loss")
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        expected = gradients[key].grad
        if parameter.grad is None:  # heads without use, which scvi-tools runs
            assert expected is None or not expected.any(), key
            continue
        scale = float(expected.abs().max()) + 1.0
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-4 * scale, msg=key)


def scanvi_of(adata: Any, **options: Any) -> Any:
    adata.obs["known"] = np.where(np.arange(adata.n_obs) % 3, adata.obs["cell_type"], "?")
    adata.obs["known"] = adata.obs["known"].astype(str)
    scvi.model.SCANVI.setup_anndata(
        adata, labels_key="known", unlabeled_category="?", batch_key="batch"
    )
    model = scvi.model.SCANVI(adata, n_hidden=8, n_latent=3, **options)
    model.module.eval()
    model.is_trained_ = True
    return model


@pytest.mark.parametrize("options", [{}, {"linear_classifier": True, "n_layers": 2}], ids=str)
def test_a_converted_model_gives_the_same_labels(options: Any, tmp_path: Any) -> None:
    """Also from a folder, and from one whose counts were replaced by the latent posterior."""
    adata = small_data(90, 20)
    theirs = scanvi_of(adata, **options)
    want = theirs.predict(soft=True)
    ours = from_scvi_tools(theirs)
    found = ours.predict(soft=True)
    assert list(found.columns) == list(want.columns)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)
    theirs.save(tmp_path / "whole")
    again = from_scvi_tools(tmp_path / "whole", adata)
    assert again.predict(soft=True).equals(found)
    again.fit(1, progress=False, batch_size=20)
    names = ("X_latent_qzm", "X_latent_qzv")
    for name, value in zip(names, theirs.get_latent_representation(return_dist=True), strict=True):
        theirs.adata.obsm[name] = value
    theirs.minify_adata()
    theirs.save(tmp_path / "minified", save_anndata=True)
    again = from_scvi_tools(tmp_path / "minified")
    assert again.predict(adata, soft=True).equals(found)
    with pytest.raises(InputError, match="has no way into scvi-tools"):
        to_scvi_tools(ours, adata)


def test_other_classes_are_refused_by_name(tmp_path: Any) -> None:
    adata = small_data(60, 20)
    scvi.model.LinearSCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.LinearSCVI(adata)
    model.is_trained_ = True
    model.save(tmp_path / "linear")
    for source in (model, tmp_path / "linear"):
        with pytest.raises(InputError, match="LinearSCVI"):
            from_scvi_tools(source)
