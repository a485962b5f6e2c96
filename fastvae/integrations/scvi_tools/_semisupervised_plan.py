"""scvi-tools' semi-supervised training plan with less to do in each step."""

from __future__ import annotations

from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.train import SemiSupervisedTrainingPlan
from scvi.train._constants import METRIC_KEYS
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from ._module import SCANVAE
from ._quick_hooks import QuickHooks
from ._training_plan import GuardedPlan

_METHODS = {name: getattr(SCANVAE, name, None) for name in ("loss", "forward")}
_METRICS = (
    METRIC_KEYS.CLASSIFICATION_LOSS_KEY,
    METRIC_KEYS.ACCURACY_KEY,
    METRIC_KEYS.F1_SCORE_KEY,
    METRIC_KEYS.CALIBRATION_ERROR_KEY,
)
_OF_DATA_MODULES = (
    REGISTRY_KEYS.X_KEY,
    REGISTRY_KEYS.BATCH_KEY,
    REGISTRY_KEYS.LABELS_KEY,
    REGISTRY_KEYS.CAT_COVS_KEY,
    REGISTRY_KEYS.CONT_COVS_KEY,
)
"""Keys by which scvi-tools tells that the cells of a minibatch are also its labelled ones."""

Batch = dict[str, Tensor]


class SemiSupervisedPlan(QuickHooks, GuardedPlan, SemiSupervisedTrainingPlan):
    """``SemiSupervisedTrainingPlan`` for fastvae's module; it treats others as that does.

    The optimiser is fused and the weights are guarded. Losses and metrics of the classifier are
    added up and logged once per epoch, under the names and at the step of scvi-tools.
    """

    def __init__(self, module: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, *args, **kwargs)
        self._lean = self.why_not_lean() is None
        self._sums: Tensor | None = None

    def why_not_lean(self) -> str | None:
        """Return why losses are logged at each step and not summed over the epoch, or None."""
        module = self.module
        if type(module) is not SCANVAE:
            return f"the module is a {type(module).__name__}, not one of fastvae's"
        replaced = any(getattr(SCANVAE, name) is not code for name, code in _METHODS.items())
        if replaced or _METHODS.keys() & module.__dict__.keys():
            return "the module's loss or forward was replaced"
        if getattr(module, "extra_payload_autotune", False):
            return "extra_payload_autotune is on"
        # scvi-tools 1.3 knows neither, and logs each step
        if getattr(self, "on_step", True) or not getattr(self, "on_epoch", True):
            return "losses are logged at each step (on_step, on_epoch)"
        theirs = SemiSupervisedTrainingPlan.compute_and_log_metrics
        if type(self).compute_and_log_metrics is not theirs:
            return "compute_and_log_metrics was replaced"
        return None

    def on_train_epoch_start(self) -> None:
        """Start the sums of an epoch."""
        super().on_train_epoch_start()
        self._sums = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Compute the loss of a minibatch of all cells and one of labelled cells."""
        if not self._lean:
            return super().training_step(batch, batch_idx)
        cells, labelled = _parts(batch)
        if "kl_weight" in self.loss_kwargs:
            self.loss_kwargs["kl_weight"] = self.kl_weight
        given = {"labelled_tensors": labelled, **self.loss_kwargs}
        _, _, found = self.forward(cells, loss_kwargs=given)
        n = found.n_obs_minibatch
        with torch.no_grad():
            row = [found.loss * n, found.reconstruction_loss_sum, found.kl_local_sum]
            row += [value * n for value in self._classification(found)]
            sums = torch.stack([*row, found.loss.new_tensor(float(n))]).double()
            self._sums = sums if self._sums is None else self._sums.add_(sums)
        if self.trainer.is_last_batch:
            self._log_epoch()
        return found.loss

    def on_train_epoch_end(self) -> None:
        """Log an epoch that ended before its last minibatch; check the weights."""
        self._log_epoch()
        super().on_train_epoch_end()

    def _classification(self, found: Any) -> list[Tensor]:
        """Return the values of `_METRICS` for a minibatch, or none without labelled cells."""
        if found.classification_loss is None:
            return []
        labels, logits = found.true_labels.squeeze(-1), found.logits
        accuracy = (logits.argmax(-1) == labels).to(logits.dtype).mean()
        calibration = multiclass_calibration_error(
            logits, labels, self.n_classes, validate_args=False
        )
        # the micro average of F1 over classes is the accuracy
        return [found.classification_loss, accuracy, accuracy, calibration]

    def _log_epoch(self) -> None:
        if self._sums is None:
            return
        (loss, reconstruction, kl, *metrics, n), self._sums = self._sums.float(), None
        self.log_sums(loss, reconstruction, kl, n)
        for name, value in zip(_METRICS, metrics, strict=False):  # no metrics without labels
            self.log_with_mode(
                name, value / n, "train", on_step=False, on_epoch=True, batch_size=int(n)
            )


def _parts(batch: Any) -> tuple[Batch, Batch | None]:
    """Return the minibatch of all cells and that of labelled ones, as scvi-tools divides them."""
    if isinstance(batch, dict):
        return batch, (batch if all(key in batch for key in _OF_DATA_MODULES) else None)
    cells, labelled = batch
    return cells, labelled
