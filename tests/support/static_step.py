"""The step that a GPU replays, on a CPU: a small model, and a watch on what it asks of torch."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastvae import VAE, _covariates
from fastvae.functional import arguments as _check
from fastvae.train import TrainSettings
from fastvae.train import cuda_graph as static
from fastvae.vae import arguments as inputs

interpreted = pytest.mark.skipif(
    not importlib.util.find_spec("triton") or os.environ.get("TRITON_INTERPRET") != "1",
    reason="the kernels run in triton's interpreter",
)
SETTINGS = TrainSettings(
    max_epochs=3,
    batch_size=32,
    learning_rate=5e-3,
    max_grad_norm=20.0,
    n_epochs_kl_warmup=2,
)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "DEVICES", {"cpu"})
    # On a GPU nobody looks at the numbers of a minibatch to check them.
    for module in (inputs, _covariates):
        monkeypatch.setattr(module, "readable", lambda *_: False)
    monkeypatch.setattr(_check, "index_range", lambda *_: None)


def vae(**options: Any) -> VAE:
    torch.manual_seed(0)
    fixed = {"n_batch": 2, "n_latent": 3, "n_hidden": 16, "use_observed_lib_size": True}
    return VAE(30, check_counts=False, **{**fixed, **options})


WAITS = {  # what makes the host wait for a GPU: a number read, or a size that depends on numbers
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "bincount",
    "unique_dim",
    "_unique2",
    "repeat_interleave",
    "_to_cpu",
}


class Watch(TorchDispatchMode):
    """Notes each operation with the shapes that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [out] if isinstance(out, torch.Tensor) else out
        shapes = [
            tuple(one.shape)
            for one in (made if isinstance(made, (list, tuple)) else [])
            if isinstance(one, torch.Tensor)
        ]
        masks = [
            one
            for one in (args[1] if func.overloadpacket.__name__ == "index" else [])
            if one is not None and one.dtype in (torch.bool, torch.uint8)
        ]
        name = "nonzero" if masks else func.overloadpacket.__name__
        self.seen.append((name, *shapes))
        return out
