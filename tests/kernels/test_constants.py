"""Constants that compiled kernels read: Triton compares them with themselves at every launch."""

from __future__ import annotations

import importlib
import pkgutil

import fastvae.kernels
import pytest

pytest.importorskip("triton")
from triton.language import constexpr

MODULES = [
    m.name
    for m in pkgutil.walk_packages(fastvae.kernels.__path__, "fastvae.kernels.")
    if not m.name.endswith("libfastvae_cpu")  # a C library, not a module
]


def test_constants_of_kernels_equal_themselves():
    found = {
        f"{name}.{key}": value.value
        for name in MODULES
        for key, value in vars(importlib.import_module(name)).items()
        if isinstance(value, constexpr)
    }
    assert "fastvae.kernels.math_gpu.LOG2E" in found
    unequal = [name for name, value in found.items() if value != value]
    assert not unequal, f"write NaN inside the kernels: {unequal}"
