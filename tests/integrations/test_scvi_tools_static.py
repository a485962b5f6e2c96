"""fastvae's own loop through the scvi-tools door: the step that a GPU replays, and bad endings."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import numpy as np
import pytest
import torch
from static_step import WAITS, Watch

scvi = pytest.importorskip("scvi")
from scvi_native import (  # noqa: E402
    MODELS,
    SIZE,
    adata,
    made,
    same_history,
    same_weights,
    train,
)

from fastvae import _covariates  # noqa: E402
from fastvae.data.stores.residence import place  # noqa: E402
from fastvae.errors import InputError  # noqa: E402
from fastvae.functional import arguments as _check  # noqa: E402
from fastvae.integrations.scvi_tools import _loop_module as _rows  # noqa: E402
from fastvae.integrations.scvi_tools import _trainer  # noqa: E402
from fastvae.train import Callback, NonFiniteError  # noqa: E402
from fastvae.train import cuda_graph as static  # noqa: E402
from fastvae.vae import arguments as inputs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata"]  # fixtures


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Training steps of fixed memory, on the CPU and the counts "on the device", as on a GPU."""
    seen: list[Any] = []
    whole = static.StaticStep.__call__

    def noted(self: Any, rows: Any) -> None:
        if torch.is_grad_enabled():  # not so in validation
            seen.append(rows.clone())
        whole(self, rows)

    monkeypatch.setattr(static, "DEVICES", {"cpu"})
    monkeypatch.setattr(static.StaticStep, "__call__", noted)
    monkeypatch.setattr(_trainer, "place", lambda store, _, device: place(store, "device", device))
    # On a GPU nobody looks at the numbers of a minibatch to check them.
    for module in (inputs, _covariates):
        monkeypatch.setattr(module, "readable", lambda *_: False)
    monkeypatch.setattr(_check, "index_range", lambda *_: None)
    return seen


@pytest.mark.parametrize("name", ["nb", "learned library", "covariates", "embedding, labels"])
def test_the_step_that_a_gpu_replays(adata: Any, steps: list[Any], name: str) -> None:
    options = {"plan_kwargs": {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 30}}
    own = train(made(adata.copy(), **MODELS[name]), early_stopping=True, **options)
    last = len(own.train_indices) - 6 * SIZE
    assert 0 < last < SIZE
    assert [len(rows) for rows in steps] == [*[SIZE] * 6, last] * 3
    assert sorted(torch.cat(steps[:7]).tolist()) == sorted(own.train_indices)
    static.DEVICES.clear()
    plain = train(made(adata.copy(), **MODELS[name]), early_stopping=True, **options)
    assert len(steps) == 21
    same_history(own, plain, rtol=2e-5)
    same_weights(own, plain, atol=2e-4)


def test_that_step_never_waits_for_the_device(
    adata: Any, steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    inner = _rows.ByRow.forward

    def watched(self: Any, *batch: Any) -> Any:
        if not self.training:
            return inner(self, *batch)
        with Watch() as watch:
            found = inner(self, *batch)
        seen.append({entry[0] for entry in watch.seen})
        return found

    monkeypatch.setattr(_rows.ByRow, "forward", watched)
    setup = MODELS["covariates"]["setup"]
    train(made(adata, setup, use_observed_lib_size=False, n_layers=2), epochs=1)
    names = set.union(*seen)
    assert {"index_select", "addmm"} & names
    assert not names & WAITS


class Interrupt(Callback):
    """Presses Ctrl-C after the second epoch."""

    def on_epoch_end(self, epoch: int, row: Any, module: Any) -> None:
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_training_keeps_what_was_learned(
    adata: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = _trainer.train_vae

    def interrupted(*args: Any, callbacks: Any, **kwargs: Any) -> Any:
        return loop(*args, callbacks=[*callbacks, Interrupt()], **kwargs)

    monkeypatch.setattr(_trainer, "train_vae", interrupted)
    model = made(adata.copy())
    with caplog.at_level(logging.WARNING, logger="fastvae"):
        train(model, epochs=9)
    assert "interrupted after 2 whole epochs" in caplog.text
    assert model.is_trained
    assert list(model.history["elbo_train"].index) == [0, 1]
    assert model.trainer.state.status == "interrupted"
    monkeypatch.setattr(_trainer, "train_vae", loop)
    whole = train(made(adata.copy()), epochs=2)
    np.testing.assert_array_equal(
        model.history["elbo_train"].to_numpy(float), whole.history["elbo_train"].to_numpy(float)
    )


@pytest.mark.parametrize("loop", ["fastvae", "lightning"])
def test_a_nan_among_the_counts_is_named(adata: Any, loop: str) -> None:
    model = made(adata)
    bad = int(np.flatnonzero(np.diff(adata.X.indptr[:10]))[0])
    gene = int(adata.X.indices[adata.X.indptr[bad]])
    adata.X.data[adata.X.indptr[bad]] = np.nan
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    split = {"datasplitter_kwargs": {"external_indexing": [np.arange(430), None, None]}}
    with pytest.raises(InputError) as raised:
        train(model, loop, **split)
    said = str(raised.value)
    assert f"nan at cell '{adata.obs_names[bad]}' (row {bad})" in said
    assert f"gene '{adata.var_names[gene]}' (column {gene})" in said
    assert "lr" not in said.split()  # which is not to blame
    assert not model.is_trained
    assert all(torch.equal(v, before[key]) for key, v in model.module.state_dict().items())


@pytest.mark.parametrize("loop", ["fastvae", "lightning"])
def test_weights_that_explode_are_put_back(adata: Any, loop: str) -> None:
    model = made(adata)
    with pytest.raises(NonFiniteError, match=r"epoch 1.* is not finite.*lr in plan_kwargs"):
        train(model, loop, plan_kwargs={"lr": 1e30})
    assert all(value.isfinite().all() for value in model.module.state_dict().values())
