"""Fixtures shared by the tests."""

from __future__ import annotations

import pytest
import torch

from fastvae import functional

BACKENDS = ["torch"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Every operation's test runs once per backend of this machine."""
    with functional.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
