"""`ByRow`: a scvi-tools module with the signature that fastvae's training loop calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from torch import Tensor, nn

from ...data.stores.host import CountStore
from ._minibatches import Source
from ._networks import load_in_place


def store_of(source: Source, cell_names: Any) -> CountStore:
    """Return the counts of `source` for fastvae's minibatches; the label of a cell is its row.

    `ByRow` looks up everything else that is registered by that row, the batches included.
    """
    n_cells, n_genes = source.counts.shape
    return CountStore(
        counts=source.counts,
        gene_names=np.arange(n_genes).astype(str),
        cell_names=np.asarray(cell_names, dtype=object),
        batch_codes=np.zeros(n_cells, dtype=np.int64),
        batch_categories=(),
        label_codes=np.arange(n_cells),
        label_categories=(),
        log_library_mean=np.zeros(1, dtype=np.float32),
        log_library_var=np.ones(1, dtype=np.float32),
    )


class ByRow(nn.Module):
    """``module(x, local_l_mean, local_l_var, batch_index, y)`` from counts and rows alone.

    Everything that is registered beside the counts is kept on the device, and every operation on it
    can be captured as a CUDA graph. Parameters and buffers have the names of `module`. Parts
    of it that are in evaluation mode stay so in training, as with Lightning (2.2 or newer).

    Parameters
    ----------
    module
        One of fastvae's modules for scvi-tools.
    columns
        Tensors of N rows on its device, by registry key.
    warmup_steps
        Minibatches over which the KL weight grows; None if it does not grow by minibatches.

    Attributes
    ----------
    extra
        Sums since `clear` that the loop does not keep, for training (True) and validation (False):
        (2,) float64, the KL divergence of the library and the weighted one of z.
    """

    def __init__(
        self, module: nn.Module, columns: dict[str, Tensor], warmup_steps: int | None = None
    ) -> None:
        super().__init__()
        self.module = module
        self._modes = [(part, part.training) for part in module.modules()]
        self.columns = columns
        self.warmup_steps = warmup_steps
        device = next(module.parameters()).device
        self.extra = {
            training: torch.zeros(2, dtype=torch.float64, device=device)
            for training in (True, False)
        }
        self._steps = torch.zeros((), dtype=torch.float64, device=device)

    def forward(
        self, x: Tensor, local_l_mean: Tensor, local_l_var: Tensor, batch_index: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """Return the two parts of the loss of each cell (N,); `y` (N, 1) has their rows."""
        rows = y.reshape(-1)
        tensors = {key: column.index_select(0, rows) for key, column in self.columns.items()}
        tensors[REGISTRY_KEYS.X_KEY] = x
        _, _, found = self.module(
            tensors,
            get_inference_input_kwargs={"full_forward_pass": True},
            loss_kwargs={"kl_weight": 1.0},
        )
        reconstruction = found.reconstruction_loss["reconstruction_loss"]
        kl = found.kl_local[MODULE_KEYS.KL_Z_KEY]
        learned = not self.module.use_observed_lib_size
        kl_library = found.kl_local[MODULE_KEYS.KL_L_KEY] if learned else None
        return *self.noted(reconstruction, kl, kl_library), 0.0

    def noted(
        self, reconstruction: Tensor, kl: Tensor, kl_library: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Add to `extra`; return the two parts of the loss that the loop takes, (N,) both."""
        if kl_library is not None:
            reconstruction = reconstruction + kl_library
            self._note(0, kl_library)
        if self.training and self.warmup_steps is not None:
            self._note(1, kl, (self._steps / self.warmup_steps).clamp(max=1.0))
            self._steps += 1
        return reconstruction, kl

    def _note(self, which: int, values: Tensor, weight: Tensor | float = 1.0) -> None:
        with torch.no_grad():
            self.extra[self.training][which] += values.sum(dtype=torch.float64) * weight

    def read(self, training: bool) -> list[float]:
        """Return the extra sums and start new ones."""
        sums = self.extra[training].tolist()
        self.extra[training].zero_()
        return sums

    def clear(self) -> None:
        """Set all sums and steps to zero."""
        for sums in (*self.extra.values(), self._steps):
            sums.zero_()

    def train(self, mode: bool = True) -> ByRow:
        """See ``torch.nn.Module``; training restores the modes that the parts had at first."""
        super().train(mode)
        for part, training in self._modes:
            part.training = mode and training
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """See ``torch.nn.Module``."""
        return self.module.named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """See ``torch.nn.Module``."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        """See ``torch.nn.Module``."""
        return load_in_place(self.module, state_dict)
