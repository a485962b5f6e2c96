"""CSR arrays as torch tensors on a device."""

from __future__ import annotations

import numpy as np
import torch

from .._torch import APPLE, csr_of


def csr_tensor(
    crow: np.ndarray,
    col: np.ndarray,
    values: np.ndarray,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Wrap CSR arrays as a ``torch.sparse_csr`` tensor; on the CPU nothing is copied.

    Parameters
    ----------
    crow, col, values
        Row starts (N+1,), columns (nnz,), values (nnz,). Row starts and columns share one
        integer dtype: int32 halves the traffic of int64, and torch's sparse matmul on the CPU
        computes with it directly.
    size
        (N, G).
    device
        Where the tensor lives.

    Returns
    -------
    torch.Tensor
        (N, G) ``torch.sparse_csr``, dtype of `values`; dense on a device without sparse tensors.
    """
    device = torch.device(device)
    if device.type in APPLE:
        return csr_tensor(crow, col, values, size).to_dense().to(device)
    parts = [on_device(part, device) for part in (crow, col, values)]
    return csr_of(parts[0], parts[1], parts[2], size)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return `array` as a tensor: shared on the CPU, else copied through pinned memory.

    The host does not wait for the copy; torch keeps the pinned memory until it is done.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    if device.type in APPLE:  # whose memory is the host's
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
