"""Which loop trains a model: fastvae's own, or Lightning's.

fastvae's loop trains only if it supports every option that was given; otherwise Lightning trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

import torch.distributed
from lightning.pytorch import Trainer as LightningTrainer
from scvi import settings as scvi_settings
from scvi.train import Trainer as TheirTrainer
from torch import nn

from ..._status import hint_once
from ...errors import InputError
from ...train import TrainSettings
from ._minibatches import DataSplitter
from ._training_plan import Plan

LOOPS = ("auto", "fastvae", "lightning")
AUTOMATIC = {"cuda"}
"""Types of device on which "auto" takes fastvae's loop."""

_HONOURED = {
    "max_epochs",
    "accelerator",
    "devices",
    "benchmark",  # of convolutions
    "check_val_every_n_epoch",
    "default_root_dir",
    "early_stopping",
    "early_stopping_monitor",
    "early_stopping_min_delta",
    "early_stopping_patience",
    "early_stopping_warmup_epochs",
    "early_stopping_mode",
    "enable_progress_bar",
    "progress_bar_refresh_rate",
    "simple_progress_bar",
    "log_every_n_steps",
    "gradient_clip_val",
}
_AS_DEFAULT: dict[str, tuple[Any, ...]] = {
    "callbacks": (None, []),
    "gradient_clip_algorithm": (None, "norm"),
    "precision": (None, 32, "32", "32-true"),
}
"""Values that mean the same as leaving the option out."""
_LOADER = {"batch_size", "distributed_sampler", "num_workers", "persistent_workers", "source"}
_VALIDATED = {
    f"{name}_validation" for name in ("elbo", "reconstruction_loss", "kl_local", "kl_global")
} | {"validation_loss"}


def say(reason: str) -> None:
    """Log why Lightning trains, once for each reason."""
    hint_once(f"Lightning trains instead of fastvae's own loop: {reason}")


def why_lightning(
    trainer: Any, given: Mapping[str, Any], plan: Any, splitter: Any, ckpt_path: Any
) -> str | None:
    """Return which option fastvae's loop does not support, or None.

    Parameters
    ----------
    trainer
        fastvae's `Trainer`.
    given
        The keyword arguments that it was made with.
    plan, splitter
        As scvi-tools made them.
    ckpt_path
        A checkpoint to resume from.
    """
    if ckpt_path is not None:
        return "ckpt_path was given"
    return (
        _of_trainer(trainer, given) or _of_splitter(splitter) or _of_plan(plan, trainer, splitter)
    )


def training_settings(trainer: Any, plan: Any, splitter: Any) -> TrainSettings:
    """Return the options as fastvae's settings.

    Raises
    ------
    InputError
        A value that fastvae's loop does not take.
    """
    epochs, steps = plan.n_epochs_kl_warmup or None, plan.n_steps_kl_warmup or None
    matrices = torch.get_float32_matmul_precision()
    return TrainSettings(
        max_epochs=trainer.max_epochs,
        batch_size=_batch_size(splitter),
        learning_rate=plan.lr,
        eps=plan.eps,
        weight_decay=plan.weight_decay,
        n_epochs_kl_warmup=epochs,
        n_steps_kl_warmup=None if epochs else steps,
        max_grad_norm=trainer.gradient_clip_val or None,
        reduce_lr_on_plateau=plan.reduce_lr_on_plateau,
        lr_factor=plan.lr_factor,
        lr_patience=plan.lr_patience,
        lr_min=plan.lr_min,
        precision="float32" if matrices == "highest" else "tf32",
    )


def _batch_size(splitter: Any) -> Any:
    return splitter.data_loader_kwargs.get("batch_size") or scvi_settings.batch_size


def _defaults(function: Any) -> dict[str, Any]:
    parameters = signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not Parameter.empty}


def _of_trainer(trainer: Any, given: Mapping[str, Any]) -> str | None:
    known = _defaults(LightningTrainer.__init__) | _defaults(TheirTrainer.__init__)
    for name, value in given.items():
        if name in _HONOURED or (name == "learning_rate_monitor" and trainer.plateau):
            continue
        same = _AS_DEFAULT.get(name, (known.get(name),))
        if not any(value is one or (type(value) is type(one) and value == one) for one in same):
            return f"{name} was given"
    device = trainer.strategy.root_device.type
    if device not in ("cpu", "cuda"):
        return f"training is on {device} (accelerator)"
    if trainer.world_size > 1 or trainer.num_devices > 1:
        return "there is more than one device (devices)"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "torch.distributed is in use"
    stopper = trainer.early_stopping_callback
    if stopper is not None and stopper.monitor not in _VALIDATED:
        return f"early_stopping_monitor={stopper.monitor!r} is not of the validation"
    if getattr(scvi_settings, "mlflow_set_tracking_uri", ""):
        return "scvi.settings.mlflow_set_tracking_uri is set"
    return None


def _of_splitter(splitter: Any) -> str | None:
    if type(splitter) is not DataSplitter:
        return f"the data comes from a {type(splitter).__name__} (datamodule)"
    reason = splitter.why_theirs()
    if reason is not None:
        return reason
    others = [name for name in splitter.data_loader_kwargs if name not in _LOADER]
    if others:
        return f"{others[0]} was given (datasplitter_kwargs)"
    if not isinstance(splitter.drop_last, bool):
        return f"drop_last={splitter.drop_last!r}"
    return None


def _of_plan(plan: Any, trainer: Any, splitter: Any) -> str | None:
    if type(plan) is not Plan:
        return f"the training plan is a {type(plan).__name__}"
    if isinstance(plan.module, nn.Module) and hasattr(plan.module, "_orig_mod"):
        return "compile was asked for"
    reason = plan.why_not_lean() or plan.module.why_dense()
    if reason is not None:
        return reason
    if plan.optimizer_name != "Adam":
        return f"optimizer={plan.optimizer_name!r}"
    if not getattr(plan, "fused_optimizer", True):
        return "fused_optimizer is off"
    if getattr(plan, "update_only_decoder", False):
        return "update_only_decoder is on"
    others = plan.loss_kwargs.keys() - {"kl_weight"}
    if others:
        return f"{min(others)} was given to the loss (plan_kwargs)"
    for name, usual in (("min_kl_weight", 0.0), ("max_kl_weight", 1.0)):
        if getattr(plan, name, usual) != usual:
            return f"{name}={getattr(plan, name)!r}"
    if plan.reduce_lr_on_plateau:
        if plan.lr_scheduler_metric != "elbo_validation":
            return f"lr_scheduler_metric={plan.lr_scheduler_metric!r}"
        if plan.lr_threshold != 0:
            return f"lr_threshold={plan.lr_threshold!r}"
        if plan.lr_min > plan.lr:
            return f"lr_min={plan.lr_min!r} is above lr={plan.lr!r}"
        if trainer.check_val_every_n_epoch != 1 or not splitter.n_val:
            return "reduce_lr_on_plateau without validation after each epoch"
    try:
        training_settings(trainer, plan, splitter)
    except InputError as error:
        return str(error)
    return None
