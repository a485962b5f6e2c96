"""Fixtures shared by the tests."""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path

import pytest
import torch
from interpreter import patch_language_once

from fastvae import functional
from fastvae._status import hint_once

# The operations' tests make their tensors on this device: FASTVAE_TEST_DEVICE=cuda on a GPU. On
# the CPU the Triton kernels run in triton's interpreter, which is chosen at import.
if device := os.environ.get("FASTVAE_TEST_DEVICE"):
    torch.set_default_device(device)
else:
    os.environ.setdefault("TRITON_INTERPRET", "1")
BACKENDS = ["torch", *(["triton"] if importlib.util.find_spec("triton") else [])]
if not device:
    BACKENDS.append("cpu")  # built by the install; its absence is a failure, not a skip
    if "triton" in BACKENDS:
        patch_language_once()


def pytest_configure(config):
    """Make outdated calls in tests/support errors too: its modules have no package in common."""
    support = "|".join(path.stem for path in Path(__file__).parent.glob("support/*.py"))
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
        config.addinivalue_line("filterwarnings", f"error::{kind}:({support})$")


@pytest.fixture(autouse=True)
def _hints_anew():
    """Hints that are given once in a process are given once in a test."""
    hint_once.cache_clear()


# The tensors are tiny; on a busy machine threads would only wait for each other.
torch.set_num_threads(1)

# torch says once in a process that sparse CSR is in beta: here, so that no test depends on which
# of them comes first.
with warnings.catch_warnings(action="ignore"):
    torch.eye(1, device="cpu").to_sparse_csr()


PRECISIONS = [
    (backend, dtype)
    for backend in BACKENDS
    for dtype in (torch.float32, torch.float64)
    if backend == "torch" or dtype == torch.float32  # the others compute in float32
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every operation's test runs once per backend of this machine."""
    with functional.use_backend(request.param):
        yield request.param


@pytest.fixture(params=PRECISIONS, ids=lambda p: f"{p[0]}-{str(p[1])[6:]}")
def backend_and_dtype(request):
    """Every dtype of every backend, which is in force meanwhile."""
    with functional.use_backend(request.param[0]):
        yield request.param


@pytest.fixture
def dtype(backend_and_dtype):
    """The dtype of the two."""
    return backend_and_dtype[1]


@pytest.fixture
def close(dtype):
    """Comparison with a float64 value, as tightly as the dtype allows."""
    tolerance = {"rtol": 2e-5, "atol": 1e-5} if dtype == torch.float32 else {}

    def check(got, expected, message=""):
        torch.testing.assert_close(
            got.double(), expected.double(), **tolerance, msg=lambda m: f"{message}: {m}"
        )

    return check


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
