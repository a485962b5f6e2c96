"""fastvae's own loop through the scvi-tools door, beside Lightning's.

With the same cells in the same order and the same noise the two do the same steps; what they leave
behind has the same names and shapes.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
from typing import Any

import numpy as np
import pytest
import torch

scvi = pytest.importorskip("scvi")
import lightning.pytorch as pl  # noqa: E402

from fastvae import _check  # noqa: E402
from fastvae._vae import inputs  # noqa: E402
from fastvae.data import Minibatches  # noqa: E402
from fastvae.data.residence import place  # noqa: E402
from fastvae.datasets import simulate  # noqa: E402
from fastvae.errors import InputError  # noqa: E402
from fastvae.integrations import scvi_tools as door  # noqa: E402
from fastvae.integrations.scvi_tools import _choice, _data, _plan, _rows, _trainer  # noqa: E402
from fastvae.train import Callback, NonFiniteError, static  # noqa: E402
from fastvae.train.schedules import epoch_seed  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

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
            yield source.minibatch(batches.order()[start:stop])

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


RUNS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "validation": {"check_val_every_n_epoch": 2, "epochs": 5},
    "early stopping": {
        "early_stopping": True,
        "early_stopping_patience": 2,
        "early_stopping_min_delta": 1e3,
        "epochs": 9,
    },
    "another monitor": {
        "early_stopping": True,
        "early_stopping_monitor": "kl_local_validation",
        "early_stopping_mode": "max",
        "early_stopping_patience": 1,
        "early_stopping_warmup_epochs": 1,
        "epochs": 9,
    },
    "test set": {"train_size": 0.6, "validation_size": 0.2, "check_val_every_n_epoch": 1},
    "not shuffled": {"shuffle_set_split": False, "check_val_every_n_epoch": 1},
    "warm-up by steps": {
        "plan_kwargs": {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 17},
        "log_every_n_steps": 2,
    },
    "warm-up by epochs": {"plan_kwargs": {"n_epochs_kl_warmup": 2, "n_steps_kl_warmup": 5}},
    "no warm-up": {"plan_kwargs": {"n_epochs_kl_warmup": None}},
    "plateau": {
        "plan_kwargs": {
            "reduce_lr_on_plateau": True,
            "lr": 0.5,
            "lr_patience": 0,
            "lr_factor": 0.5,
            "lr_min": 0.2,
        },
        "epochs": 8,
    },
    "Adam": {"plan_kwargs": {"lr": 3e-3, "eps": 1e-4, "weight_decay": 0.1}},
    "clipping": {"gradient_clip_val": 0.5},
    "last minibatch dropped": {"datasplitter_kwargs": {"drop_last": True}},
    "configs": {"plan_config": {"lr": 2e-3}, "trainer_config": {"check_val_every_n_epoch": 1}},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_lightnings(our_draws: None, adata: Any, name: str) -> None:
    """Step for step: same losses, rates and weights, and the same is left behind."""
    if name == "configs" and not hasattr(scvi.train, "TrainerConfig"):
        pytest.skip("this scvi-tools has no such options")
    options = RUNS[name]
    own = train(made(adata), **options)
    other = train(made(adata.copy()), "lightning", **options)
    assert (own.trainer.chosen, other.trainer.chosen) == ("fastvae", "lightning")
    rates = own.history.get("lr-Adam")
    if rates is None:
        same_history(own, other)
        same_weights(own, other)
    else:  # at this rate rounding grows fast
        same_history(own, other, rtol=2e-3)
        assert rates.iloc[-1, 0] == 0.2
    for part in ("train_indices", "validation_indices", "test_indices"):
        np.testing.assert_array_equal(getattr(own, part), getattr(other, part))
    for trainer in ("current_epoch", "global_step", "should_stop"):
        assert getattr(own.trainer, trainer) == getattr(other.trainer, trainer)
    assert own.is_trained
    assert not own.module.training
    if "stopping" in name or "monitor" in name:
        assert len(own.history["elbo_train"]) < options["epochs"]


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


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_lightnings(our_draws: None, adata: Any, name: str) -> None:
    own, other = (
        train(made(adata.copy(), **MODELS[name]), loop, 2, check_val_every_n_epoch=1)
        for loop in ("fastvae", "lightning")
    )
    same_history(own, other)
    same_weights(own, other)


@pytest.mark.parametrize("form", ["dense", "many nonzeros", "layer"])
def test_counts_in_any_form(our_draws: None, adata: Any, form: str) -> None:
    other = made(adata.copy())
    setup = {}
    if form == "dense":
        adata.X = adata.X.toarray()
    elif form == "layer":
        adata.layers["raw"] = adata.X.tocsc()
        adata.X = None
        setup = {"layer": "raw"}
    else:
        adata.X = adata.X.toarray() + 1.0
        other = made(adata.copy())
        other.adata.X = _sparse(other.adata.X)
    same_history(train(made(adata, setup)), train(other, "lightning"))


def _sparse(x: Any) -> Any:
    import scipy.sparse as sp

    return sp.csr_matrix(x, dtype=np.float32)


def test_the_whole_run_of_scvi_tools_is_matched_in_distribution(adata: Any) -> None:
    """Beside unpatched scvi-tools, with other orders and noise: the same split, a like ELBO."""
    own = train(made(adata), epochs=40, check_val_every_n_epoch=1)
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    other = scvi.model.SCVI(adata, n_hidden=16, n_latent=4)
    other.train(40, **QUIET, check_val_every_n_epoch=1)
    np.testing.assert_array_equal(own.train_indices, other.train_indices)
    assert list(own.history) == list(other.history)
    first, last = (own.history["elbo_validation"].iloc[i, 0] for i in (0, -1))
    theirs = other.history["elbo_validation"].iloc[-1, 0]
    assert abs(last - theirs) < 0.05 * (first - theirs)


def test_training_goes_on(our_draws: None, adata: Any) -> None:
    own, other = made(adata.copy()), made(adata)
    for _ in range(2):
        train(own, epochs=2)
        train(other, "lightning", epochs=2)
    assert list(own.history["elbo_train"].index) == [0, 1, 2, 3]
    same_history(own, other)


def test_the_seed_of_scvi_tools_decides(adata: Any) -> None:
    found = []
    for seed in (0, 0, 1):
        model = made(adata.copy())
        scvi.settings.seed = seed
        model.train(2, **QUIET, loop="fastvae")
        found.append((model.history["elbo_train"].to_numpy(float), model.train_indices))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert not np.array_equal(found[0][0], found[2][0])
    assert not np.array_equal(found[0][1], found[2][1])


def test_external_indexing(our_draws: None, adata: Any) -> None:
    order = np.random.default_rng(3).permutation(430)

    def parts() -> Any:
        return {"external_indexing": [order[:300], order[300:400], order[400:]]}

    own, other = (
        train(made(adata.copy()), loop, datasplitter_kwargs=parts(), early_stopping=True)
        for loop in ("fastvae", "lightning")
    )
    same_history(own, other)
    np.testing.assert_array_equal(own.test_indices, order[400:])


def refused(adata: Any, model: Any, options: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        train(made(adata, **model), **options)


WITHOUT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "callbacks": ({"callbacks": [pl.Callback()]}, {}, "callbacks was given"),
    "logger": ({"logger": False}, {}, "logger was given"),
    "checkpoints": ({"enable_checkpointing": True}, {}, "enable_checkpointing was given"),
    "steps": ({"max_steps": 5}, {}, "max_steps was given"),
    "accumulation": ({"accumulate_grad_batches": 2}, {}, "accumulate_grad_batches was given"),
    "precision": ({"precision": "bf16-mixed"}, {}, "precision was given"),
    "clipping": (
        {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"},
        {},
        "gradient_clip_algorithm was given",
    ),
    "monitor": (
        {"early_stopping": True, "early_stopping_monitor": "elbo_train"},
        {},
        "early_stopping_monitor='elbo_train'",
    ),
    "rate logged": ({"learning_rate_monitor": True}, {}, "learning_rate_monitor was given"),
    "workers": ({"datasplitter_kwargs": {"num_workers": 1}}, {}, "workers"),
    "loader": ({"datasplitter_kwargs": {"timeout": 0}}, {}, "timeout was given"),
    "epochs": ({"epochs": 0}, {}, "max_epochs must be"),
    "batch size": ({"batch_size": 1}, {}, "batch_size must be"),
    "optimiser": ({"plan_kwargs": {"optimizer": "AdamW"}}, {}, "optimizer='AdamW'"),
    "decoder": ({"plan_kwargs": {"update_only_decoder": True}}, {}, "update_only_decoder"),
    "weight": ({"plan_kwargs": {"max_kl_weight": 0.5}}, {}, "max_kl_weight=0.5"),
    "least weight": ({"plan_kwargs": {"min_kl_weight": 0.5}}, {}, "min_kl_weight=0.5"),
    "step logs": ({"plan_kwargs": {"on_step": True}}, {}, "on_step"),
    "metric": (
        {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_scheduler_metric": "kl_local_train"}},
        {},
        "lr_scheduler_metric='kl_local_train'",
    ),
    "threshold": (
        {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_threshold": 0.1}},
        {},
        "lr_threshold=0.1",
    ),
    "floor": (
        {"plan_kwargs": {"reduce_lr_on_plateau": True, "lr_min": 1.0}},
        {},
        "lr_min=1.0 is above",
    ),
    "plateau": (
        {"plan_kwargs": {"reduce_lr_on_plateau": True}, "check_val_every_n_epoch": 2},
        {},
        "reduce_lr_on_plateau without validation",
    ),
    "eps": ({"plan_kwargs": {"eps": 0.0}}, {}, "eps must be"),
    "normal": ({}, {"gene_likelihood": "normal"}, "'normal' likelihood"),
    "variance": ({}, {"var_activation": torch.nn.functional.softplus}, "variance activation"),
    "autotune": ({}, {"extra_payload_autotune": True}, "extra_payload_autotune"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_it_cannot_honour_is_refused_by_name(adata: Any, name: str) -> None:
    options, model, reason = WITHOUT[name]
    one = made(adata, **model)
    before = {key: value.clone() for key, value in one.module.state_dict().items()}
    with pytest.raises(InputError, match=f"loop='fastvae' cannot train this: .*{reason}"):
        train(one, **options)
    assert not one.is_trained
    assert all(torch.equal(value, before[key]) for key, value in one.module.state_dict().items())


class Other(_data.DataSplitter):
    """A splitter of somebody's own."""


class OtherPlan(_plan.Plan):
    """A plan of somebody's own."""


def test_what_somebody_replaced_is_refused(adata: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(adata)
    with monkeypatch.context() as patch:
        patch.setattr(model, "_data_splitter_cls", Other, raising=False)
        with pytest.raises(InputError, match="comes from a Other"):
            train(model)
    with monkeypatch.context() as patch:
        patch.setattr(model, "_training_plan_cls", OtherPlan, raising=False)
        with pytest.raises(InputError, match="training plan is a OtherPlan"):
            train(model)
    with monkeypatch.context() as patch:
        patch.setattr(model.module, "loss", model.module.loss)
        with pytest.raises(InputError, match="loss or forward was replaced"):
            train(model)
    with pytest.raises(InputError, match="loop='Lightning' is not known"):
        train(model, "Lightning")
    model.module.decoder.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="decoder was changed"):
        train(model)


def test_backed_and_minified_data_are_refused(adata: Any, tmp_path: Any) -> None:
    import anndata

    model = train(made(adata.copy()))
    model.adata.obsm["qzm"], model.adata.obsm["qzv"] = model.get_latent_representation(
        return_dist=True
    )
    model.minify_adata(use_latent_qzm_key="qzm", use_latent_qzv_key="qzv")
    with pytest.raises(InputError, match="minified"):
        train(model)
    adata.write_h5ad(tmp_path / "backed.h5ad")
    backed = anndata.read_h5ad(tmp_path / "backed.h5ad", backed="r")
    with pytest.raises(InputError, match="backed by a file"):
        train(made(backed))


@pytest.mark.parametrize("name", ["workers", "optimiser"])
def test_automatically_it_falls_back_and_says_so_once(
    adata: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(_trainer, "AUTOMATIC", {"cpu"})
    _choice.say.cache_clear()
    options, _, reason = WITHOUT[name]
    with caplog.at_level(logging.WARNING, logger="fastvae"):
        models = [train(made(adata.copy()), loop, **options) for loop in (None, "auto")]
    said = [r.message for r in caplog.records if r.message.startswith("Lightning trains")]
    assert len(said) == 1
    assert reason in said[0]
    for model in models:
        assert model.trainer.chosen == "lightning"
        same_history(model, train(made(adata.copy()), "lightning", **options))
    assert train(made(adata.copy()), None).trainer.chosen == "fastvae"


def test_a_last_minibatch_of_one_cell(adata: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """scvi-tools raises, and so does "auto"; asked for, the loop joins it to the one before."""
    monkeypatch.setattr(_trainer, "AUTOMATIC", {"cpu"})
    data = adata[: 2 * SIZE + 1].copy()
    with pytest.raises(ValueError, match="minibatch of one cell"):
        train(made(data), "auto", train_size=1.0)
    model = train(made(data), train_size=1.0)
    assert model.trainer.global_step == 3 * 2
    model = train(made(data), "auto", train_size=1.0, batch_size=SIZE - 1)
    assert model.trainer.chosen == "fastvae"


def test_on_a_cpu_it_is_lightning_and_nothing_is_said(adata: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="fastvae"):
        model = train(made(adata), None)
    assert model.trainer.chosen == "lightning"
    assert not [r for r in caplog.records if r.name == "fastvae"]


def test_an_accelerated_model(our_draws: None, adata: Any) -> None:
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = door.accelerate(scvi.model.SCVI(adata, n_hidden=16, n_latent=4))
    train(model)
    assert type(model) is scvi.model.SCVI
    same_history(model, train(made(adata.copy()), "lightning"))


def test_what_people_do_afterwards(adata: Any, tmp_path: Any) -> None:
    adata.obs["label"] = adata.obs["label"].replace({"c": "unknown"})
    model = train(made(adata, {"labels_key": "label"}), early_stopping=True)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = door.SCVI.load(tmp_path / "model")
    same_weights(loaded, model, atol=0.0)
    latent = model.get_latent_representation()
    np.testing.assert_array_equal(loaded.get_latent_representation(), latent)
    assert np.isfinite(model.get_elbo())
    table = model.differential_expression(groupby="label", group1="a")
    assert len(table) == 50
    labelled = scvi.model.SCANVI.from_scvi_model(model, unlabeled_category="unknown")
    labelled.train(1, **QUIET)
    query = adata[:100].copy()
    query.obs["batch"] = "new"
    mapped = [_mapped(query.copy(), model) for _ in range(2)]
    before = {name: value.clone() for name, value in mapped[0].module.state_dict().items()}
    moved = []
    for one, loop in zip(mapped, ("fastvae", "lightning"), strict=True):
        train(one, loop, plan_kwargs={"weight_decay": 0.0})
        state = one.module.state_dict()
        moved.append(
            {name for name, value in state.items() if not torch.equal(value, before[name])}
        )
    assert moved[0] == moved[1]
    assert 0 < len(moved[0]) < len(before)


def _mapped(query: Any, model: Any) -> Any:
    torch.manual_seed(0)
    return door.SCVI.load_query_data(query, model)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Steps of fixed memory, on the CPU and with the counts "on the device", as on a GPU."""
    seen: list[Any] = []
    whole = static.StaticStep.__call__

    def noted(self: Any, rows: Any, sums: Any) -> None:
        seen.append(rows.clone())
        whole(self, rows, sums)

    monkeypatch.setattr(static, "DEVICES", {"cpu"})
    monkeypatch.setattr(static.StaticStep, "__call__", noted)
    monkeypatch.setattr(_trainer, "place", lambda store, _, device: place(store, "device", device))
    # On a GPU nobody looks at the numbers of a minibatch to check them.
    monkeypatch.setattr(inputs, "_readable", lambda *_: False)
    monkeypatch.setattr(_check, "index_range", lambda *_: None)
    return seen


@pytest.mark.parametrize("name", ["nb", "learned library", "covariates", "embedding, labels"])
def test_the_step_that_a_gpu_replays(adata: Any, steps: list[Any], name: str) -> None:
    options = {"plan_kwargs": {"n_epochs_kl_warmup": None, "n_steps_kl_warmup": 30}}
    own = train(made(adata.copy(), **MODELS[name]), early_stopping=True, **options)
    assert [len(rows) for rows in steps] == [SIZE] * 18  # the short last one is an ordinary step
    epoch = torch.cat(steps[:6]).numpy()
    assert len(set(epoch)) == len(epoch)
    assert set(epoch) <= set(own.train_indices)
    static.DEVICES.clear()
    plain = train(made(adata.copy(), **MODELS[name]), early_stopping=True, **options)
    assert len(steps) == 18
    same_history(own, plain, rtol=2e-5)
    same_weights(own, plain, atol=2e-4)


def test_that_step_never_waits_for_the_device(
    adata: Any, steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from static_step import WAITS, Watch

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
    with pytest.raises(NonFiniteError) as raised:
        train(model, loop, **split)
    said = str(raised.value)
    assert "stopped in epoch 1" in said
    assert f"the count of cell {bad} and gene {gene}" in said
    assert "lr in plan_kwargs" in said
    assert "gradient_clip_val=10" in said
    assert not model.is_trained
    for value in model.module.state_dict().values():
        assert value.isfinite().all()
    if loop == "lightning":
        assert all(torch.equal(v, before[key]) for key, v in model.module.state_dict().items())


@pytest.mark.parametrize("loop", ["fastvae", "lightning"])
def test_weights_that_explode_are_put_back(adata: Any, loop: str) -> None:
    model = made(adata)
    with pytest.raises(NonFiniteError, match=r"epoch 1.* is not finite.*lr in plan_kwargs"):
        train(model, loop, plan_kwargs={"lr": 1e30})
    assert all(value.isfinite().all() for value in model.module.state_dict().values())
