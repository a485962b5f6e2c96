"""Fixtures shared by the tests."""

from __future__ import annotations

import pytest
import torch

from fastvae import functional

BACKENDS = ["torch"]

# The tensors are tiny; on a busy machine threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every operation's test runs once per backend of this machine."""
    with functional.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
