"""A stand-in for an Apple GPU, and `Model.fit` on it: ``python apple_gpu.py FOLDER``.

Tensors say that they are on the device "apple" and keep their numbers in memory. What an Apple GPU
cannot do is an error: float64, sparse tensors, numpy's view of its memory, and every operation that
torch's own table (native_functions.yaml) has no Metal kernel for. torch gives a process one such
device for good, so this is a program of its own.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import torchgen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "apple"
TABLE = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
EVERYWHERE = ("MPS", "CompositeImplicitAutograd", "CompositeExplicitAutograd")
used: set[str] = set()


@functools.cache
def table() -> dict[str, tuple[str | None, str | None]]:
    """The operation that makes each operation's result, and the devices it is written for."""
    found = {}
    for entry in TABLE.read_text().split("\n- func: ")[1:]:
        delegate = re.search(r"\n  structured_delegate: (\S+)", entry)
        devices = re.search(r"\n  dispatch:\n((?:    .*\n?)+)", entry)
        found[entry.split("(", 1)[0]] = (
            delegate[1] if delegate else None,
            devices[1] if devices else None,
        )
    return found


def has_metal_kernel(name: str) -> bool:
    """Whether torch's table has the operation for Apple's GPUs, or for every device."""
    delegate, devices = table()[name]
    if delegate is not None:
        return has_metal_kernel(delegate)
    return devices is None or any(key in devices for key in EVERYWHERE)


class OnApple(torch.Tensor):
    """A tensor that says it is on the device."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem: torch.Tensor) -> OnApple:
        assert elem.dtype != torch.float64, "Apple's GPUs have no float64"
        assert elem.layout == torch.strided, "Apple's GPUs have no sparse CSR tensors"
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.shape,
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=torch.device(NAME, 0),
        )
        made.elem = elem
        return made

    def tolist(self) -> Any:  # torch refuses it for subclasses
        return self.elem.tolist()

    def new_tensor(self, *args: Any, **kwargs: Any) -> Any:  # it goes past the dispatcher
        return OnApple(self.elem.new_tensor(*args, **kwargs))

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("numpy cannot read an Apple GPU; call .cpu() first")

    @classmethod
    def __torch_dispatch__(cls, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(f, args, kwargs or {})


class Apple(TorchDispatchMode):
    """Lets the device be named while it is active."""

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(f, args, kwargs or {})


def computed(f: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute in memory, and put the result where it belongs."""
    there = any(isinstance(value, OnApple) for value in tree_leaves((args, kwargs)))
    to = kwargs.get("device")
    if there or (to is not None and torch.device(to).type == NAME):
        name = f._schema.name.removeprefix("aten::")
        name += f".{f._schema.overload_name}" if f._schema.overload_name else ""
        used.add(name)
    if to is not None:
        there = torch.device(to).type == NAME
        kwargs = {**kwargs, "device": "cpu"}
    plain = tree_map(lambda v: v.elem if isinstance(v, OnApple) else v, (args, kwargs))
    result = f(*plain[0], **plain[1])
    if not there:
        return result
    for given in args:  # an operation in place returns its argument
        if isinstance(given, OnApple) and result is given.elem:
            return given
    return tree_map(lambda v: OnApple(v) if isinstance(v, torch.Tensor) else v, result)


class Module(_DummyBackendModule):
    """What ``torch.mps`` has, for this device."""

    def get_rng_state(self) -> torch.Tensor:
        return torch.tensor([7], dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor) -> None:
        assert state.tolist() == [7]

    def manual_seed(self, seed: int) -> None:
        pass  # the numbers are drawn by the CPU's generator

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def main(folder: Path) -> None:
    """Train on the device and on the CPU, and print how they compare."""
    from fastvae import Model, _torch, datasets, functional

    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    _torch.APPLE.add(NAME)
    counts = datasets.simulate(n_cells=300, n_genes=40, n_batches=2, n_types=3, seed=1)
    builds: list[dict[str, Any]] = [
        {"reconstruction_loss": "zinb"},
        {"reconstruction_loss": "zinb", "dispersion": "gene-cell", "encode_covariates": True},
        {"reconstruction_loss": "nb", "dispersion": "gene-batch", "use_observed_lib_size": False},
        {"reconstruction_loss": "poisson", "latent_distribution": "ln", "n_layers": 2},
    ]
    options: dict[str, Any] = {"max_epochs": 3, "seed": 0, "progress": False, "max_grad_norm": 5.0}
    runs = []
    for number, build in enumerate(builds):
        # without dropout both devices train on the same noise: the stand-in draws from the CPU
        build |= {"batch_key": "batch", "dropout_rate": 0.0}
        kept = {"checkpoint_dir": folder / str(number), "checkpoint_every": 1}
        with Apple():
            there = Model(counts, **build).fit(device=NAME, **options, **kept)
        with functional.use_backend("torch"):
            here = Model(counts, **build).fit(device="cpu", **options)
        runs.append(
            {
                "device": str(next(there.module.parameters()).device),
                "trained_on": there.training["device"],
                "apple": there.history["validation_elbo"].tolist(),
                "cpu": here.history["validation_elbo"].tolist(),
            }
        )
    without = sorted(name for name in used if not has_metal_kernel(name))
    print(json.dumps({"runs": runs, "operations": sorted(used), "without_metal": without}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
