"""Covariates and size factors as scvi-tools has them, with scvi-tools running beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from witness import assert_parity

from fastvae import VAE

scvi = pytest.importorskip("scvi")

pytestmark = pytest.mark.filterwarnings("ignore")

N, G, K, CATS, P = 30, 19, 3, [2, 1, 4], 2

CASES: dict[str, dict[str, Any]] = {
    "decoder": {},
    "encoders": {"encode_covariates": True, "n_layers": 2},
    "first layer": {"encode_covariates": True, "n_layers": 3, "deeply_inject_covariates": False},
    "size factor": {"use_size_factor_key": True, "n_layers": 2},
    "size factor, nb": {"use_size_factor_key": True, "likelihood": "nb"},
    "size factor, poisson": {
        "use_size_factor_key": True,
        "likelihood": "poisson",
        "encode_covariates": True,
    },
    "learned": {"use_observed_lib_size": False, "encode_covariates": True},
    "gene-cell": {"dispersion": "gene-cell", "use_size_factor_key": True},
    "no batches": {"n_batch": 1, "encode_covariates": True},
}


def tensors(n_batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    number = torch.arange(N)
    return {
        "X": torch.poisson(torch.full((N, G), 0.7), generator=generator)
        + (number % G == 0)[:, None],
        "batch": number[:, None] % n_batch,
        "labels": number[:, None] * 0,
        "extra_categorical_covs": torch.stack([number // 3 % 2, number * 0, number // 2 % 4], 1),
        "extra_continuous_covs": torch.randn(N, P, generator=generator),
        "size_factor": torch.rand(N, 1, generator=generator) + 0.5,
    }


@pytest.mark.parametrize("name", CASES)
def test_the_network_is_that_of_scvi_tools(name: str) -> None:
    options = dict(CASES[name])
    likelihood = options.pop("likelihood", "zinb")
    fixed: dict[str, Any] = {"n_batch": K, "n_labels": 1, "n_hidden": 8, "n_latent": 3}
    options = {**fixed, "n_cats_per_cov": CATS, "n_continuous_cov": P, **options}
    options.setdefault("use_observed_lib_size", True)
    learned = not options["use_observed_lib_size"]
    given = tensors(options["n_batch"])
    prior: dict[str, Any] = {}
    if learned:
        prior = {
            f"library_log_{what}": np.full((1, K), 1.5, np.float32) for what in ("means", "vars")
        }
    torch.manual_seed(1)
    theirs = scvi.module.VAE(G, gene_likelihood=likelihood, **options, **prior)
    torch.manual_seed(1)
    ours = VAE(G, reconstruction_loss=likelihood, **options)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("library_log")}
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key]), key  # the same names and first weights
    more = {
        "cat_covs": given["extra_categorical_covs"],
        "cont_covs": given["extra_continuous_covs"],
        "size_factor": given["size_factor"],
    }
    if not options.get("use_size_factor_key"):
        del more["size_factor"], given["size_factor"]
    theirs.eval(), ours.eval()
    torch.manual_seed(2)
    inference, generative, loss = theirs(given)
    loss.loss.backward()
    cells = given["X"], given["batch"]
    torch.manual_seed(2)
    found = ours.inference(*cells, **more)
    assert_parity(found["qz_m"], inference["qz"].loc, "mean of z")
    assert_parity(found["px_scale"], generative["px"].scale, "expression", 1e-6)
    local = (torch.full((N, 1), 1.5),) * 2 if learned else (None, None)
    torch.manual_seed(2)
    first, kl, _ = ours(cells[0].to_sparse_csr(), *local, cells[1], **more)
    (first + kl).mean().backward()
    assert_parity((first + kl).mean(), loss.loss, "loss")
    gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        want = gradients[key].grad
        if parameter.grad is None:  # heads without use, which scvi-tools runs
            assert want is None or not want.any(), key
            continue
        scale = float(want.abs().max()) + 1.0
        torch.testing.assert_close(parameter.grad, want, rtol=0, atol=1e-4 * scale, msg=key)
