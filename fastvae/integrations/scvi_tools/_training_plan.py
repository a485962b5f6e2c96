"""scvi-tools' training plan with less to do in each step.

Losses are added up in one tensor and logged once per epoch, at the step and under the names that
scvi-tools logs them; Adam runs as one fused operation. A NaN or an infinity ends the training.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from scvi import REGISTRY_KEYS
from scvi.train import TrainingPlan
from scvi.train._trainingplans import _compute_kl_weight
from torch import Tensor

from ...train.guard import (
    CORRECT_THE_DATA,
    NonFiniteError,
    first_non_finite,
    non_finite_error,
)
from ...train.state import copy_state
from ._minibatches import wrong_input
from ._module import LDVAE, VAE
from ._networks import load_in_place
from ._quick_hooks import QuickHooks
from ._written_loss import Written, WrittenLoss

LEAN = {kind: (kind.loss, kind.forward) for kind in (VAE, LDVAE)}
"""Methods that a module must have unchanged if its losses are only to be summed."""


if TYPE_CHECKING:
    _Behind = Any
else:
    _Behind = object


def in_their_words(error: NonFiniteError) -> NonFiniteError:
    """Return the error with scvi-tools' names of the options."""
    words = str(error).replace("learning_rate", "lr in plan_kwargs")
    return NonFiniteError(words.replace("max_grad_norm", "gradient_clip_val"), error.steps)


class GuardedPlan(_Behind):
    """Mixin for a training plan: fuses its Adam or AdamW and checks the weights.

    If an epoch ends with weights that are not finite, training ends and the weights from the start
    of that epoch are restored. scvi-tools' distributions check their parameters at each step,
    fastvae's do not.
    """

    _good: tuple[int, dict[str, Tensor]] | None = None
    """Optimiser steps and weights at the start of the epoch."""

    _copied: dict[str, Tensor] | None = None
    """The copy of the epoch before, whose memory the next one takes."""

    def on_train_epoch_start(self) -> None:
        """Keep a copy of the weights."""
        super().on_train_epoch_start()
        weights, self._copied = copy_state(self.module, self._copied), None
        self._good = self.global_step, weights

    def on_train_epoch_end(self) -> None:
        """Check the weights."""
        super().on_train_epoch_end()
        if self._good is not None:
            name = first_non_finite(self.module.state_dict().items())
            if name is not None:
                self._fail(f"{name} after an optimiser's step")
            self._copied, self._good = self._good[1], None

    def on_train_end(self) -> None:
        """Give back the memory of the copy."""
        super().on_train_end()
        self._copied = None

    def _fail(self, what: str) -> NoReturn:
        """Restore the weights from the start of the epoch and raise; check the data first."""
        assert self._good is not None
        steps, weights = self._good
        load_in_place(self.module, weights)
        remedy = None
        data = wrong_input(self.trainer)
        name = first_non_finite(weights.items())
        if data is not None:
            what, remedy = data, CORRECT_THE_DATA
        elif name is not None:
            what = f"{name}, before a step of this epoch,"
            remedy = "Load or train weights that are finite"
        error = non_finite_error(self.current_epoch + 1, None, what, self.lr, steps, remedy=remedy)
        raise in_their_words(error)

    def log_sums(self, loss: Tensor, reconstruction: Tensor, kl: Tensor, n: Tensor) -> None:
        """Log an epoch; `loss`, `reconstruction` and `kl` are summed over its `n` cells.

        Raises
        ------
        NonFiniteError
            One of them is not finite. The weights from the start of the epoch are restored.
        """
        alone = self.trainer.world_size == 1 and self._full_precision()
        if alone and self._good is not None and not torch.isfinite(loss + reconstruction + kl):
            name, value = ("the KL divergence", kl)
            if not torch.isfinite(reconstruction):
                name, value = ("the reconstruction loss", reconstruction)
            self._fail(f"{name} ({float(value / n):g})")
        self.log(
            "train_loss",
            loss / n,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=int(n),
            sync_dist=self.use_sync_dist,
        )
        epoch = SimpleNamespace(
            reconstruction_loss_sum=reconstruction,
            kl_local_sum=kl,
            kl_global_sum=torch.zeros_like(kl),
            n_obs_minibatch=n,
            extra_metrics_keys=(),
        )
        # a semi-supervised plan would look for the losses of its classifier here
        TrainingPlan.compute_and_log_metrics(self, epoch, self.train_metrics, "train")

    def _optimizer_creator_fn(self, optimizer_cls: Any) -> Callable[..., torch.optim.Optimizer]:
        # scvi-tools has the option fused_optimizer from 1.5 on
        if not (self._full_precision() and getattr(self, "fused_optimizer", True)):
            return super()._optimizer_creator_fn(optimizer_cls)

        def create(parameters: Any) -> torch.optim.Optimizer:
            return optimizer_cls(
                parameters, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=True
            )

        return create

    def _full_precision(self) -> bool:
        """Whether there is no gradient scaler, which a fused Adam does not support."""
        on = {p.device.type for p in self.module.parameters()}
        return str(self.trainer.precision) in ("32-true", "bf16-mixed") and on <= {"cpu", "cuda"}


class Plan(QuickHooks, GuardedPlan, TrainingPlan):
    """``TrainingPlan`` for fastvae's modules; it treats others as ``TrainingPlan`` does."""

    def __init__(self, module: Any, *args: Any, **kwargs: Any) -> None:
        self._kl_weight: tuple[float, Tensor] | None = None
        super().__init__(module, *args, **kwargs)
        self._lean = self.why_not_lean() is None
        self._sums: Tensor | None = None
        self._logged_weight: Tensor | None = None
        self._written_loss: WrittenLoss | None = None

    def why_not_lean(self) -> str | None:
        """Return why losses are logged at each step and not summed over the epoch, or None."""
        module = self.module
        kind = type(module)
        if kind not in LEAN:
            return f"the module is a {kind.__name__}, not one of fastvae's"
        if (kind.loss, kind.forward) != LEAN[kind] or {"loss", "forward"} & module.__dict__.keys():
            return "the module's loss or forward was replaced"
        if getattr(module, "extra_payload_autotune", False):
            return "extra_payload_autotune is on"
        # scvi-tools 1.3 knows neither, and logs each step
        if getattr(self, "on_step", True) or not getattr(self, "on_epoch", True):
            return "losses are logged at each step (on_step, on_epoch)"
        if type(self).compute_and_log_metrics is not TrainingPlan.compute_and_log_metrics:
            return "compute_and_log_metrics was replaced"
        return None

    @property
    def kl_weight(self) -> Tensor:
        """Current weight of the KL divergence; the tensor is reused while its value stays."""
        weight = _compute_kl_weight(
            self.current_epoch,
            self.global_step,
            self.n_epochs_kl_warmup,
            self.n_steps_kl_warmup,
            self.max_kl_weight,
            self.min_kl_weight,
        )
        known = self._kl_weight
        if known is None or known[0] != weight or known[1].device != self.device:
            known = self._kl_weight = (weight, torch.tensor(weight).to(self.device))
        return known[1]

    def on_train_epoch_start(self) -> None:
        """Start the sums of an epoch."""
        super().on_train_epoch_start()
        self._sums = self._logged_weight = None
        if self._written_loss is not None:
            self._written_loss.check()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Compute the loss of a minibatch."""
        if not self._lean:
            return super().training_step(batch, batch_idx)
        if "kl_weight" in self.loss_kwargs:
            self.loss_kwargs["kl_weight"] = weight = self.kl_weight
            if weight is not self._logged_weight:
                self._logged_weight = weight
                self.log("kl_weight", weight, on_step=True, on_epoch=False, batch_size=1)
        loss, reconstruction, kl = self._losses(batch)
        n = batch[REGISTRY_KEYS.X_KEY].shape[0]
        with torch.no_grad():
            row = [loss * n, reconstruction, kl, loss.new_tensor(float(n))]
            sums = torch.stack(row).double()
            self._sums = sums if self._sums is None else self._sums.add_(sums)
        if self.trainer.is_last_batch:
            self._log_epoch()
        return loss

    def _losses(self, batch: dict[str, Tensor]) -> Written:
        """Loss of a minibatch and sums over its cells, without autograd where that is possible."""
        if self._may_be_written():
            if self._written_loss is None:
                self._written_loss = WrittenLoss()
            written = self._written_loss(self.module, batch, self.loss_kwargs["kl_weight"])
            if written is not None:
                return written
        _, _, found = self.forward(batch, loss_kwargs=self.loss_kwargs)
        return Written(found.loss, found.reconstruction_loss_sum, found.kl_local_sum)

    def _may_be_written(self) -> bool:
        """Whether the plan wants nothing but the loss, from the module as it is, in float32."""
        return (
            self.loss_kwargs.keys() == {"kl_weight"}
            and not getattr(self, "update_only_decoder", False)
            and type(self).forward is TrainingPlan.forward
            and "forward" not in self.__dict__
            and self.trainer.world_size == 1
            and str(self.trainer.precision) == "32-true"
        )

    def on_train_end(self) -> None:
        """Give back the memory of the gradients."""
        super().on_train_end()
        self._written_loss = None

    def on_train_epoch_end(self) -> None:
        """Log an epoch that ended before its last minibatch; check the weights."""
        self._log_epoch()
        super().on_train_epoch_end()

    def _log_epoch(self) -> None:
        if self._sums is None:
            return
        (loss, reconstruction, kl, n), self._sums = self._sums.float(), None
        self.log_sums(loss, reconstruction, kl, n)
