"""What Triton does at a launch: it compares constants, and has defaults for options."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import fastvae.kernels
import pytest

pytest.importorskip("triton")
from triton.language import constexpr

MODULES = [
    m.name
    for m in pkgutil.walk_packages(fastvae.kernels.__path__, "fastvae.kernels.")
    if not m.name.endswith("libfastvae_cpu")  # a C library, not a module
]


def test_constants_of_kernels_are_few_and_equal_themselves():
    found = {
        f"{name}.{key}": value.value
        for name in MODULES
        for key, value in vars(importlib.import_module(name)).items()
        if isinstance(value, constexpr)
    }
    assert "fastvae.kernels.constants_gpu.LOG2E" in found
    unequal = [name for name, value in found.items() if value != value]
    assert not unequal, f"write NaN inside the kernels: {unequal}"
    apart = {name for name in found if ".constants_gpu." not in name}
    where = "fastvae.kernels.likelihood.gpu"
    assert apart == {f"{where}.WARP", f"{where}.LANES"}, "Triton compares each at every launch"


def launches(path):
    """Calls ``some_kernel[grid](...)`` of a file, by line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            named = node.func.value
            if isinstance(named, ast.Name) and named.id.endswith("_kernel"):
                yield f"{path.name}:{node.lineno}, {named.id}", node


def test_every_launch_says_that_products_and_sums_are_fused():
    paths = [path for root in fastvae.kernels.__path__ for path in Path(root).rglob("gpu*.py")]
    found = [launch for path in paths for launch in launches(path)]
    assert len(found) >= 15
    # Triton 3.10 no longer fuses by default, and 3.9 warns of that
    unsaid = [
        where
        for where, call in found
        if "enable_fp_fusion" not in [keyword.arg for keyword in call.keywords]
    ]
    assert not unsaid
