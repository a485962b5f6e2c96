"""Models trained through the scvi-tools door, small and from one seed, and how to compare them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scvi
import torch

from fastvae.data import Minibatches
from fastvae.datasets import simulate
from fastvae.integrations import scvi_tools as door
from fastvae.integrations.scvi_tools import _loop_module as _rows
from fastvae.integrations.scvi_tools import _minibatches as _data
from fastvae.integrations.scvi_tools import _training_plan as _plan
from fastvae.train.schedules import epoch_seed

SEED = 7
SIZE = 64
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "batch_size": SIZE}


@pytest.fixture
def adata() -> Any:
    data = simulate(430, 50, density=0.2, seed=0)
    draw = np.random.default_rng(0)
    data.obs["label"] = np.array(["a", "b", "c"])[draw.integers(0, 3, data.n_obs)]
    data.obs["donor"] = np.array(["x", "y"])[draw.integers(0, 2, data.n_obs)]
    data.obs["age"] = draw.normal(size=data.n_obs)
    data.obs["size"] = draw.uniform(0.5, 2, data.n_obs)
    return data


def made(data: Any, setup: Any = None, cls: Any = door.SCVI, **options: Any) -> Any:
    scvi.settings.seed = 0
    cls.setup_anndata(data, **{"batch_key": "batch", **(setup or {})})
    return cls(data, **{"n_hidden": 16, "n_latent": 4, **options})


def train(model: Any, loop: str | None = "fastvae", epochs: int = 3, **options: Any) -> Any:
    """Train it from `SEED`."""
    torch.manual_seed(SEED)
    chosen = {} if loop is None else {"loop": loop}
    model.train(epochs, **{**QUIET, **chosen, **options})
    return model


@pytest.fixture
def our_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning trains on the cells, in the order and with the noise that our loop draws."""
    torch.manual_seed(SEED)
    seed = int(torch.randint(2**31, ()))

    def minibatches(loader: Any) -> Any:
        source = loader._source
        rows, shuffle = np.asarray(loader.indices), loader in training
        store = _rows.store_of(source, np.arange(source.counts.shape[0]))
        batches = Minibatches(
            store,
            rows,
            batch_size=SIZE,
            shuffle=shuffle,
            seed=seed,
            drop_last=loader.sampler.drop_last,
        )
        batches.set_epoch(epochs[0])
        edges = np.cumsum([0, *batches.sizes()])
        for start, stop in itertools.pairwise(edges.tolist()):
            yield source.minibatch(batches.order(batches.epoch)[start:stop])

    training: list[Any] = []
    epochs = [0]
    loader_of = _data.DataSplitter.train_dataloader

    def train_dataloader(self: Any) -> Any:
        training.append(loader_of(self))
        return training[-1]

    def reseeded(step: Any, seed_of: Any) -> Any:
        def whole(self: Any, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 0:
                torch.manual_seed(seed_of(self.current_epoch))
            return step(self, batch, batch_idx)

        return whole

    def start(self: Any) -> None:
        epochs[0] = self.current_epoch
        begin(self)

    begin, plan = _plan.Plan.on_train_epoch_start, _plan.Plan
    monkeypatch.setattr(_data.DataSplitter, "train_dataloader", train_dataloader)
    monkeypatch.setattr(_data.CountLoader, "__iter__", minibatches)
    monkeypatch.setattr(plan, "on_train_epoch_start", start)
    step = reseeded(plan.training_step, lambda epoch: epoch_seed(seed, epoch))
    monkeypatch.setattr(plan, "training_step", step)
    monkeypatch.setattr(plan, "validation_step", reseeded(plan.validation_step, lambda _: 0))


def same_history(own: Any, other: Any, rtol: float = 2e-6) -> None:
    assert list(own.history) == list(other.history)
    for key, frame in other.history.items():
        mine = own.history[key]
        assert (mine.index.name, list(mine.index)) == (frame.index.name, list(frame.index)), key
        assert list(mine.columns) == list(frame.columns)
        found, expected = mine.to_numpy(float), frame.to_numpy(float)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-7, err_msg=key)


def same_weights(own: Any, other: Any, atol: float = 2e-6) -> None:
    expected = other.module.state_dict()
    assert list(own.module.state_dict()) == list(expected)
    for key, value in own.module.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=atol, msg=key)


MODELS: dict[str, dict[str, Any]] = {
    "nb": {"gene_likelihood": "nb"},
    "poisson": {"gene_likelihood": "poisson", "latent_distribution": "ln"},
    "learned library": {"use_observed_lib_size": False},
    "covariates": {
        "setup": {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]},
        "encode_covariates": True,
        "n_layers": 2,
    },
    "size factors": {"setup": {"size_factor_key": "size"}},
    "embedding, labels": {
        "setup": {"labels_key": "label"},
        "batch_representation": "embedding",
        "dispersion": "gene-label",
    },
    "batches": {"dispersion": "gene-batch"},
    "linear": {"cls": door.LinearSCVI},
}
