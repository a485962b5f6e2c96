"""Training through the scvi-tools door: what users see is what scvi-tools shows them.

The door draws the same random numbers, so with the same seed a whole run can be compared.
"""

import logging
from inspect import signature

import numpy as np
import pytest
import torch

scvi = pytest.importorskip("scvi")
import lightning.pytorch as pl  # noqa: E402
from anndata import AnnData  # noqa: E402
from scvi_native import adata, made  # noqa: E402

from fastvae.integrations import scvi_tools as door  # noqa: E402
from fastvae.integrations.scvi_tools._minibatches import Source  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata"]  # a fixture

CLASSES = {
    "SCVI": (scvi.model.SCVI, door.SCVI),
    "LinearSCVI": (scvi.model.LinearSCVI, door.LinearSCVI),
}


def fitted(cls, data, setup=None, model=None, **train):
    """A trained model; everything from seed 0."""
    data = data.copy()
    scvi.settings.seed = 0
    cls.setup_anndata(data, batch_key="batch", **(setup or {}))
    scvi.settings.seed = 0
    one = cls(data, **{"n_hidden": 16, **(model or {})})
    options = {
        "max_epochs": 4,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "batch_size": 64,
    }
    one.train(**{**options, **train})
    return one


def same_run(own, other, rtol=2e-4):
    assert type(own).__name__ == type(other).__name__
    assert own.history.keys() == other.history.keys()
    for key, frame in other.history.items():
        assert list(own.history[key].index) == list(frame.index), key
        assert own.history[key].index.name == frame.index.name, key
        np.testing.assert_allclose(
            own.history[key].to_numpy(float),
            frame.to_numpy(float),
            rtol=rtol,
            atol=1e-6,
            err_msg=key,
        )
    for part in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(own, part), getattr(other, part))
    np.testing.assert_allclose(
        own.get_latent_representation(), other.get_latent_representation(), atol=5e-3
    )


@pytest.fixture
def layouts(monkeypatch):
    """Layouts of the counts in each training minibatch of the door's models."""
    seen = []
    plain = door._training_plan.Plan.training_step

    def step(self, batch, batch_idx):
        seen.append(batch["X"].layout)
        return plain(self, batch, batch_idx)

    monkeypatch.setattr(door._training_plan.Plan, "training_step", step)
    return seen


RUNS = {
    "defaults": {},
    "validation, early stopping": {
        "early_stopping": True,
        "early_stopping_patience": 1,
        "early_stopping_min_delta": 1e3,
        "max_epochs": 9,
    },
    "test set": {"train_size": 0.6, "validation_size": 0.2, "check_val_every_n_epoch": 2},
    "steps logged": {"plan_kwargs": {"on_step": True}, "log_every_n_steps": 1},
    "warm-up by steps": {
        "plan_kwargs": {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 20},
        "log_every_n_steps": 2,
    },
    "plateau": {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_patience": 1}, "max_epochs": 5},
    "clipping": {"gradient_clip_val": 1.0},
    "another optimiser": {"plan_kwargs": {"optimizer": "AdamW", "lr": 3e-3, "weight_decay": 0.1}},
    "stopped within an epoch": {"max_steps": 9, "max_epochs": 4},
    "few minibatches": {"limit_train_batches": 3},
    "accumulation": {"accumulate_grad_batches": 2},
    "last minibatch dropped": {"datasplitter_kwargs": {"drop_last": True}},
    "theirs sparse": {"load_sparse_tensor": True},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_theirs(adata, layouts, name):
    if name == "steps logged" and "on_step" not in signature(scvi.train.TrainingPlan).parameters:
        pytest.skip("scvi-tools 1.3 has no such option")
    own, other = (fitted(cls, adata, **RUNS[name]) for cls in CLASSES["SCVI"][::-1])
    assert set(layouts) == {torch.sparse_csr}
    same_run(own, other)
    if name == "validation, early stopping":
        assert len(own.history["elbo_train"]) < 9


MODELS = {
    "nb": {"model": {"gene_likelihood": "nb"}},
    "poisson": {"model": {"gene_likelihood": "poisson"}},
    "learned library": {"model": {"use_observed_lib_size": False}},
    "covariates": {
        "setup": {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]},
        "model": {"encode_covariates": True, "n_layers": 2},
    },
    "size factors": {"setup": {"size_factor_key": "size"}},
    "embedding, labels": {
        "setup": {"labels_key": "label"},
        "model": {"batch_representation": "embedding", "dispersion": "gene-label"},
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_theirs(adata, layouts, name):
    own, other = (fitted(cls, adata, **MODELS[name]) for cls in CLASSES["SCVI"][::-1])
    assert set(layouts) == {torch.sparse_csr}
    same_run(own, other)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_the_linear_model_is_theirs(adata, layouts, likelihood):
    model = {"gene_likelihood": likelihood, "n_latent": 4}
    own, other = (fitted(cls, adata, model=model) for cls in CLASSES["LinearSCVI"][::-1])
    assert set(layouts) == {torch.sparse_csr}
    same_run(own, other)
    np.testing.assert_allclose(own.get_loadings(), other.get_loadings(), atol=5e-3)


@pytest.mark.parametrize("form", ["dense", "csc", "int64", "stored zeros"])
def test_counts_in_any_form_become_csr_once(adata, layouts, form):
    expected = fitted(scvi.model.SCVI, adata)
    x = adata.X
    if form == "stored zeros":
        x = x.copy()
        x.data[::7] = 0
        adata.X = x.copy()
        expected = fitted(scvi.model.SCVI, adata)
    before = {
        "dense": x.toarray(),
        "csc": x.tocsc(),
        "int64": x.astype(np.int64),
        "stored zeros": x,
    }[form]
    adata.X = before.copy()
    own = fitted(door.SCVI, adata)
    assert set(layouts) == {torch.sparse_csr}
    same_run(own, expected)
    after = own.adata.X
    assert type(after) is type(before)
    assert (after != before).sum() == 0


REASONS = {
    "workers": ({"datasplitter_kwargs": {"num_workers": 1}}, {}, "workers"),
    "normal": ({}, {"gene_likelihood": "normal"}, "'normal' likelihood"),
    "variance": ({}, {"var_activation": torch.nn.functional.softplus}, "variance activation"),
}


@pytest.mark.parametrize("name", REASONS)
def test_their_loader_where_the_options_ask_for_it(adata, layouts, caplog, name):
    train, model, reason = REASONS[name]
    with caplog.at_level(logging.WARNING, logger="fastvae"):
        for _ in range(2):
            own = fitted(door.SCVI, adata, model=model, **train)
    assert set(layouts) == {torch.strided}
    said = [record.message for record in caplog.records if "dense minibatches" in record.message]
    assert len(said) == 1
    assert reason in said[0]
    same_run(own, fitted(scvi.model.SCVI, adata, model=model, **train))


def test_many_nonzeros_stay_dense(adata, layouts):
    dense = AnnData(
        np.random.default_rng(0).poisson(4.0, adata.shape).astype(np.float32), adata.obs
    )
    own = fitted(door.SCVI, dense)
    assert set(layouts) == {torch.strided}
    same_run(own, fitted(scvi.model.SCVI, dense))


def test_a_minibatch_is_what_their_loader_gives(adata):
    setup = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch", size_factor_key="size", **setup)
    model = scvi.model.SCVI(adata)
    rows = np.array([5, 5, 0, 429])
    batch = Source.of(model.adata_manager).minibatch(rows)
    dataset = model.adata_manager.create_torch_dataset()
    assert batch.keys() == dataset[rows].keys()
    for key, value in dataset[rows].items():
        got = batch[key].to_dense() if key == "X" else batch[key]
        torch.testing.assert_close(got, torch.as_tensor(value), rtol=0, atol=0)


class Watch(pl.Callback):
    """What a callback of the user's can read, and when."""

    def __init__(self):
        self.epochs, self.calls = [], []

    def _read(self, hook, trainer):
        metrics = trainer.callback_metrics
        self.epochs.append((hook, {key: float(value) for key, value in metrics.items()}))

    def on_train_epoch_end(self, trainer, *_):
        self._read("train", trainer)

    def on_validation_end(self, trainer, *_):
        self._read("validation", trainer)

    def on_before_zero_grad(self, *_):
        self.calls.append("zero")

    def on_before_backward(self, *_):
        self.calls.append("backward")

    def on_before_optimizer_step(self, trainer, module, optimizer):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        self.calls.append(sum(g is not None for g in gradients))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.calls.append((float(outputs["loss"]) > 0, trainer.global_step))
        assert "kl_weight" in trainer.callback_metrics


def test_callbacks_see_what_they_see_with_scvi_tools(adata):
    seen = []
    for cls in CLASSES["SCVI"]:
        watch = Watch()
        fitted(cls, adata, callbacks=[watch], check_val_every_n_epoch=1, max_epochs=3)
        seen.append(watch)
    other, own = seen
    assert own.calls == other.calls
    assert [hook for hook, _ in own.epochs] == [hook for hook, _ in other.epochs]
    for (hook, mine), (_, expected) in zip(own.epochs, other.epochs, strict=True):
        assert mine.keys() == expected.keys(), hook
        np.testing.assert_allclose(list(mine.values()), list(expected.values()), rtol=2e-4)


def test_training_goes_on_and_the_history_grows(adata):
    models = [fitted(cls, adata) for cls in CLASSES["SCVI"]]
    for model in models:
        scvi.settings.seed = 1
        model.train(2, accelerator="cpu", enable_progress_bar=False, batch_size=64)
        assert len(model.history["elbo_train"]) == 6
    same_run(models[1], models[0])


@pytest.mark.skipif(
    "fused_optimizer" not in signature(scvi.train.TrainingPlan).parameters,
    reason="scvi-tools before 1.5 has no such option",
)
@pytest.mark.parametrize("kind", ["SCVI", "LinearSCVI", "SCANVI"])
@pytest.mark.parametrize("fused", [True, False])
def test_the_optimiser_is_fused_unless_it_is_not_to_be(adata, kind, fused):
    model = (made if kind != "SCANVI" else labelled)(adata, cls=getattr(door, kind))
    given = {} if fused else {"plan_kwargs": {"fused_optimizer": False}}
    model.train(1, accelerator="cpu", enable_progress_bar=False, **given)
    (optimiser,) = model.trainer.optimizers
    assert bool(optimiser.defaults["fused"]) is fused


def labelled(data, cls):
    return made(data, {"labels_key": "label", "unlabeled_category": "c"}, cls=cls)


def test_autotune_payload_and_compiled_plans_go_their_way(adata):
    own, other = (
        fitted(cls, adata, model={"extra_payload_autotune": True}) for cls in CLASSES["SCVI"][::-1]
    )
    same_run(own, other)
