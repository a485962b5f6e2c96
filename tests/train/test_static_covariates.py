"""Covariates and size factors in the step of fixed memory, and in counts kept on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from covariate_cells import SIZED, covariate_cells
from static_step import SETTINGS, WAITS, Watch, as_on_a_gpu

from fastvae import VAE
from fastvae.data import CountStore, Minibatches
from fastvae.data.covariates import CovariateKeys
from fastvae.data.stores.device import DeviceStore
from fastvae.train import cuda_graph as static
from fastvae.train import new_history, train_vae

__all__ = ["as_on_a_gpu"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")


def store() -> CountStore:
    adata = covariate_cells(110)
    keys = CovariateKeys.checked(*SIZED.values())
    counts = adata.X.tocsr().astype(np.float32)
    counts.sort_indices()
    return CountStore.of_checked(counts, adata.obs, adata.var, batch_key="batch", covariates=keys)


HOST = store()
DEVICE = DeviceStore.of(HOST, torch.device("cpu"))
KINDS: dict[str, dict[str, Any]] = {
    "covariates": {},
    "encoded": {"encode_covariates": True, "n_layers": 2},
    "size factors": {"use_size_factor_key": True},
}


def network(**options: Any) -> VAE:
    torch.manual_seed(0)
    told = {"n_cats_per_cov": (3, 2), "n_continuous_cov": 1, "use_observed_lib_size": True}
    fixed = {"n_batch": 2, "n_latent": 3, "n_hidden": 16}
    return VAE(30, check_counts=False, **{**fixed, **told, **options})


def train(module: VAE, given: Any, steps: list[Any]) -> dict[str, list[float]]:
    history, whole = new_history(), static.StaticStep.__call__

    def noted(self: Any, rows: torch.Tensor) -> None:
        steps.append(len(rows))
        whole(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static.StaticStep, "__call__", noted)
        batches = Minibatches(given, batch_size=32, shuffle=True, seed=3)
        train_vae(module, batches, None, SETTINGS, history, seed=1, n_train=110, progress=False)
    return {name: values for name, values in history.items() if "second" not in name}


def test_minibatches_are_those_from_memory() -> None:
    options: dict[str, Any] = {"batch_size": 32, "shuffle": True, "seed": 4}
    for host, here in zip(
        Minibatches(HOST, **options), Minibatches(DEVICE, **options), strict=True
    ):
        assert set(here.covariates.given()) == {"cat_covs", "cont_covs", "size_factor"}
        for name, values in host.covariates.given().items():
            found = here.covariates.given()[name]
            assert found.dtype == values.dtype
            assert torch.equal(found, values), name
            wanted = HOST.covariates.given()[name][host.cells]
            np.testing.assert_array_equal(values.numpy(), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_same_losses_as_the_plain_run(as_on_a_gpu: None, kind: str) -> None:
    """To rounding: one sums dense rows, the other the nonzeros of sparse ones."""
    fixed: list[int] = []
    found = train(network(**KINDS[kind]), DEVICE, fixed)
    assert fixed == [32, 32, 32, 14] * 3
    plain: list[int] = []
    wanted = train(network(**KINDS[kind]), HOST, plain)
    assert plain == []
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)


def waits(rows: torch.Tensor, *memory: Any) -> int:
    with Watch() as watch:
        DEVICE.minibatch_into(rows, *memory)
    return sum(seen[0] in WAITS for seen in watch.seen)


def test_covariates_go_to_memory_that_stays() -> None:
    """As a CUDA graph needs it, and without waiting for the device more than the counts do."""
    memory = static.MinibatchMemory.empty(DEVICE, 32, None, True)
    places = {name: value.data_ptr() for name, value in memory.covariates.given().items()}
    rows = torch.arange(31, -1, -1)
    assert waits(rows, *memory.first(32)) == waits(rows, *memory.first(32)[:3])
    batch = DEVICE.minibatch_into(rows, *memory.first(32))
    for name, value in batch.covariates.given().items():
        assert value.data_ptr() == places[name]
        np.testing.assert_array_equal(value.numpy(), HOST.covariates.given()[name][:32][::-1])
