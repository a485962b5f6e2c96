"""Which loop trains through the scvi-tools door: what fastvae's refuses, and who trains then."""

from __future__ import annotations

import logging
from inspect import signature
from typing import Any

import pytest
import torch

scvi = pytest.importorskip("scvi")
import lightning.pytorch as pl  # noqa: E402
from scvi_native import SIZE, adata, made, same_history, train  # noqa: E402

from fastvae.errors import InputError  # noqa: E402
from fastvae.integrations.scvi_tools import _minibatches as _data  # noqa: E402
from fastvae.integrations.scvi_tools import _trainer  # noqa: E402
from fastvae.integrations.scvi_tools import _training_plan as _plan  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["adata"]  # fixtures


FUSED_OPTIMIZER = "fused_optimizer" in signature(scvi.train.TrainingPlan).parameters
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
    "optimiser not fused": ({"plan_kwargs": {"fused_optimizer": False}}, {}, "fused_optimizer"),
    "autotune": ({}, {"extra_payload_autotune": True}, "extra_payload_autotune"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_it_cannot_honour_is_refused_by_name(adata: Any, name: str) -> None:
    options, model, reason = WITHOUT[name]
    if name == "optimiser not fused" and not FUSED_OPTIMIZER:
        pytest.skip("scvi-tools before 1.5 has no such option")
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


def test_a_last_minibatch_of_one_cell_does_not_decide(
    adata: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both loops join that cell to the minibatch before."""
    monkeypatch.setattr(_trainer, "AUTOMATIC", {"cpu"})
    data = adata[: 2 * SIZE + 1].copy()
    for loop, chosen in (("auto", "fastvae"), ("fastvae", "fastvae"), ("lightning", "lightning")):
        model = train(made(data.copy()), loop, train_size=1.0)
        assert model.trainer.chosen == chosen
        assert model.trainer.global_step == 3 * 2


def test_on_a_cpu_it_is_lightning_and_nothing_is_said(adata: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="fastvae"):
        model = train(made(adata), None)
    assert model.trainer.chosen == "lightning"
    assert not [r for r in caplog.records if r.name == "fastvae"]
