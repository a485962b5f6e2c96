"""The loss of a minibatch with its gradients, for a training plan in Lightning's loop on a CPU.

Lightning calls ``backward`` of a loss, and so do its clipping, accumulation and callbacks. The loss
made here has the gradients with it: autograd has one node, which hands them to the parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn

from ..._torch import has_hooks
from ...functional.derivatives import Handover
from ._gradients import ModuleGradients, why_autograd


class Written(NamedTuple):
    """What a training step needs of a minibatch: the loss, and sums over its cells.

    Attributes
    ----------
    loss
        The mean; ``backward`` may be called on it, once.
    reconstruction, kl
        Sums of -log p and of all divergences.
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class WrittenLoss:
    """Computes the losses of a module's minibatches where its gradients can be written out.

    Whether that is so is looked at anew whenever `check` was called, and in between only that no
    module has got a hook, none is in evaluation and no parameter is frozen.
    """

    def __init__(self) -> None:
        self._module: Any = None
        self._keys: frozenset[str] = frozenset()
        self._gradients: ModuleGradients | None = None

    def check(self) -> None:
        """Look at the module anew at the next minibatch: an epoch begins."""
        self._module = None

    def __call__(self, module: Any, batch: dict[str, Tensor], kl_weight: Tensor) -> Written | None:
        """Return the loss of a minibatch on the CPU; None where it is left to autograd."""
        if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return None
        if len(batch[REGISTRY_KEYS.X_KEY]) == 1:  # the networks refuse it in the words of this door
            return None
        if module is not self._module or batch.keys() != self._keys:
            self._look_at(module, batch)
        if self._gradients is None or not self._as_before(module):
            return None
        gradients, handover = self._gradients, self._handover
        handover.renew()
        losses = gradients(batch[REGISTRY_KEYS.X_KEY], batch, kl_weight)
        weighted, kl = losses.nll + kl_weight * losses.kl_z, losses.kl_z.sum()
        if losses.kl_library is not None:
            weighted, kl = weighted + losses.kl_library, kl + losses.kl_library.sum()
        return Written(handover.mean(weighted), losses.nll.sum(), kl)

    def _look_at(self, module: Any, batch: dict[str, Tensor]) -> None:
        before = None if self._gradients is None else self._gradients.module
        self._module, self._keys = module, frozenset(batch)
        possible = batch[REGISTRY_KEYS.X_KEY].is_cpu and why_autograd(module, batch) is None
        if not possible:
            self._gradients = None
        elif before is not module:
            self._gradients = ModuleGradients(module)
            self._handover = Handover(self._gradients.networks.parameters)
        self._parts: list[nn.Module] = list(module.modules())
        self._parameters: list[nn.Parameter] = list(module.parameters())

    def _as_before(self, module: Any) -> bool:
        return not any(has_hooks(part) or not part.training for part in self._parts) and all(
            parameter.requires_grad for parameter in self._parameters
        )
