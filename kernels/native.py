"""The door to libfastvae_cpu: finds it, checks that it is the one meant, declares its functions.

The structs mirror ``csrc/api.h`` field by field; ``ABI`` there and here change together.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .counts import Counts, OrderedCounts

ABI = 7
GRAIN = 16_384  # entries that are worth a thread
NAME = {"darwin": "libfastvae_cpu.dylib"}.get(sys.platform, "libfastvae_cpu.so")


class CountsArgument(Structure):
    """``FastvaeCounts``."""

    _fields_ = (
        ("dense", c_void_p),
        ("dense_stride", c_int64),
        ("crow", c_void_p),
        ("col", c_void_p),
        ("values", c_void_p),
        ("wide_indices", c_int32),
    )


class NllCall(Structure):
    """``FastvaeNll``."""

    _fields_ = (
        ("n", c_int64),
        ("g", c_int64),
        ("family", c_int32),
        ("threads", c_int32),
        ("half", c_int32),
        ("x", CountsArgument),
        ("scale_logits", c_void_p),
        ("scale_stride", c_int64),
        ("log_library", c_void_p),
        ("log_theta", c_void_p),
        ("theta_stride", c_int64),
        ("theta_index", c_void_p),
        ("theta_per_cell", c_int32),
        ("want_theta", c_int32),
        ("zi_logits", c_void_p),
        ("zi_stride", c_int64),
        ("order", c_void_p),
        ("start", c_void_p),
        ("blocks", c_int64),
        ("groups", c_void_p),
        ("n_groups", c_int64),
        ("nll", c_void_p),
        ("grad", c_void_p),
        ("d_scale", c_void_p),
        ("d_library", c_void_p),
        ("d_theta", c_void_p),
        ("d_zi", c_void_p),
    )


class LatentCall(Structure):
    """``FastvaeLatent``."""

    _fields_ = (
        ("n", c_int64),
        ("l", c_int64),
        ("threads", c_int32),
        ("softmax", c_int32),
        ("var_eps", c_float),
        *((name, c_void_p) for name in ("mean", "log_var", "noise", "prior_mean", "prior_var")),
        ("prior_mean_row", c_int64),
        ("prior_mean_col", c_int64),
        ("prior_var_row", c_int64),
        ("prior_var_col", c_int64),
        *((name, c_void_p) for name in ("z", "var", "kl", "grad_z", "grad_var", "grad_kl")),
        *((name, c_void_p) for name in ("d_mean", "d_log_var", "d_prior_mean", "d_prior_var")),
    )


class LinearCall(Structure):
    """``FastvaeLinear``."""

    _fields_ = (
        ("n", c_int64),
        ("g", c_int64),
        ("h", c_int64),
        ("threads", c_int32),
        ("x", CountsArgument),
        ("weight", c_void_p),
        ("weight_stride", c_int64),
        *((name, c_void_p) for name in ("bias", "out", "grad", "d_weight")),
        ("d_weight_stride", c_int64),
    )


class ProductCall(Structure):
    """``FastvaeProduct``."""

    _fields_ = (
        ("n", c_int64),
        ("g", c_int64),
        ("h", c_int64),
        ("threads", c_int32),
        ("add", c_int32),
        ("half", c_int32),
        *((name, c_void_p) for name in ("x", "weight", "bias", "out", "grad")),
        *((name, c_void_p) for name in ("d_x", "d_weight", "d_bias")),
    )


class HiddenCall(Structure):
    """``FastvaeHidden``."""

    _fields_ = (
        ("n", c_int64),
        ("h", c_int64),
        ("threads", c_int32),
        *((name, c_float) for name in ("momentum", "eps", "scale")),
        *((name, c_void_p) for name in ("z", "weight", "bias", "running_mean", "running_var")),
        *((name, c_void_p) for name in ("keep", "out", "mean", "inverse_std", "grad")),
        *((name, c_void_p) for name in ("d_z", "d_weight", "d_bias")),
    )


_FUNCTIONS = {
    "fastvae_abi": (c_int32, []),
    "fastvae_isa": (c_char_p, []),
    "fastvae_blas_is_held_back": (c_int32, []),
    "fastvae_multiplies_bf16": (c_int32, []),
    "fastvae_use_isa": (c_int32, [c_char_p]),
    "fastvae_check_csr": (c_int32, [POINTER(CountsArgument), c_int64, c_int64, c_int64]),
    "fastvae_nll": (None, [POINTER(NllCall)]),
    "fastvae_all_equal": (c_int32, [c_void_p, c_int64, c_float]),
    "fastvae_sample_and_kl": (None, [POINTER(LatentCall)]),
    "fastvae_sample_and_kl_backward": (None, [POINTER(LatentCall)]),
    "fastvae_hidden": (None, [POINTER(HiddenCall)]),
    "fastvae_hidden_backward": (None, [POINTER(HiddenCall)]),
    "fastvae_row_sums": (None, [POINTER(CountsArgument), c_int64, c_void_p]),
    "fastvae_gather": (
        None,
        [POINTER(CountsArgument), c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int32],
    ),
    "fastvae_linear": (None, [POINTER(LinearCall)]),
    "fastvae_linear_weight_grad": (None, [POINTER(LinearCall)]),
    "fastvae_layer": (None, [POINTER(ProductCall)]),
    "fastvae_layer_input_grad": (None, [POINTER(ProductCall)]),
    "fastvae_layer_weight_grad": (None, [POINTER(ProductCall)]),
}


def load() -> ctypes.CDLL:
    """Open the library; ``FASTVAE_CPU_LIBRARY`` names another build of it.

    Raises
    ------
    ImportError
        If it is not there, cannot be opened, or is of another version; says what to do.
    """
    again = "reinstall fastvae where a C++ compiler is found (pip install --force-reinstall ...)"
    given = os.environ.get("FASTVAE_CPU_LIBRARY")
    where = Path(given) if given else files(__package__).joinpath(NAME)
    if not where.is_file():
        if given:
            raise ImportError(f"FASTVAE_CPU_LIBRARY={given} is not a file; correct or unset it")
        raise ImportError(f"{NAME} was not built with this installation; {again}")
    with as_file(where) as path:
        try:
            library = ctypes.CDLL(str(path))
            found = library.fastvae_abi()
        except (OSError, AttributeError) as error:
            raise ImportError(f"{path} cannot be used: {error}; {again}") from error
    if found != ABI:
        raise ImportError(f"{path} has interface {found}, this fastvae needs {ABI}; {again}")
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def address(t: Tensor | None) -> int | None:
    """Where a tensor's first number is."""
    return None if t is None else t.data_ptr()


library = load()


def instruction_set() -> str:
    """Which copy of the kernels runs: "v4", "v3" or "v2" of x86-64, or "baseline"."""
    return library.fastvae_isa().decode()


def use_instruction_set(name: str) -> bool:
    """Run another copy; False where this processor cannot."""
    return bool(library.fastvae_use_isa(name.encode()))


def threads_for(entries: int, pieces: int = GRAIN) -> int:
    """Threads that this much work in this many pieces is worth, at most torch's."""
    return max(1, min(torch.get_num_threads(), entries // GRAIN, pieces))


def matrix(t: Tensor) -> Tensor:
    """float32 with unit stride along genes."""
    if t.dtype != torch.float32:
        t = t.float()
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def vector(t: Tensor) -> Tensor:
    """float32 without gaps."""
    return (t if t.dtype == torch.float32 else t.float()).contiguous()


class Held(NamedTuple):
    """A struct, and the tensors its addresses point into."""

    argument: CountsArgument
    tensors: tuple[Tensor, ...]


def ordered(x: Counts) -> Counts:
    """Look at the columns of `x` once; it comes back dense where they do not increase.

    Raises
    ------
    ValueError
        If it is no CSR matrix of that shape.
    """
    held = counts_argument(x)
    if held.argument.dense is not None:
        return Counts(x.shape, held.tensors[0])
    return OrderedCounts(x.shape, None, *held.tensors)


def counts_argument(x: Counts) -> Held:
    """Counts as the library takes them, CSR whose columns do not increase laid out densely."""
    crow, col, values = x.crow, x.col, x.values
    if crow is not None and col is not None and values is not None:
        kept = crow.contiguous(), col.contiguous(), vector(values)
        at = [t.data_ptr() for t in kept]
        argument = CountsArgument(None, 0, *at, crow.dtype == torch.int64)
        if isinstance(x, OrderedCounts):
            return Held(argument, kept)
        wrong = library.fastvae_check_csr(argument, *x.shape, values.shape[0])
        if wrong == 0:
            return Held(argument, kept)
        if wrong < 3:
            what = "row pointers that do not fit" if wrong == 1 else "a column outside the genes"
            raise ValueError(f"x is a sparse_csr matrix of shape {x.shape} with {what}")
    dense = matrix(x.to_dense(torch.float32))
    argument = CountsArgument(dense.data_ptr(), dense.stride(0), None, None, None, 0)
    return Held(argument, (dense,))
