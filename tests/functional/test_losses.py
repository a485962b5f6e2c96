"""Sums of the losses of cells, on every backend."""

import pytest
import torch

from fastvae.functional.losses import add_losses


@pytest.mark.parametrize("n", [0, 1, 5, 1024, 3000])
def test_sums_of_both_terms_are_added(dtype, n):
    first, second = torch.rand(n, dtype=dtype) * 1e4, torch.rand(2 * n, dtype=dtype)[::2]
    sums = torch.tensor([1e9, -3.0], dtype=torch.float64)
    want = sums + torch.stack([first.double().sum(), second.double().sum()])
    add_losses(sums, first.requires_grad_(), second)
    torch.testing.assert_close(sums, want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_reaches_its_sum_alone(backend, odd):
    sums, bad = torch.zeros(2, dtype=torch.float64), torch.ones(7)
    bad[3] = odd
    add_losses(sums, torch.ones(7), bad)
    assert sums[0] == 7
    torch.testing.assert_close(float(sums[1]), odd, equal_nan=True)


def test_terms_of_other_kinds_are_summed_too(backend):
    sums = torch.zeros(2, dtype=torch.float64)
    add_losses(sums, torch.ones(4).double(), torch.ones(4))
    assert sums.tolist() == [4.0, 4.0]
