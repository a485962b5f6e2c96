"""Memory that is lent to results, and lent again only when nothing refers to it."""

from __future__ import annotations

import threading

import pytest
import torch
from fastvae.kernels.lent import LEAST, Lender, lent

from fastvae.functional import use_backend, zinb_nll

if torch.get_default_device().type != "cpu":
    pytest.skip("what is lent is memory of the CPU", allow_module_level=True)

NUMBERS = LEAST // 4  # float32 numbers of the smallest piece


def test_memory_is_lent_again_once_the_tensor_is_gone() -> None:
    lender = Lender()
    first = lender.empty(2, NUMBERS)
    where = first.data_ptr()
    assert first.shape == (2, NUMBERS)
    assert first.dtype == torch.float32
    assert where % 64 == 0
    del first
    assert lender.empty(2 * NUMBERS).data_ptr() == where


@pytest.mark.parametrize(
    "hold",
    [
        pytest.param(lambda t: t, id="tensor"),
        pytest.param(lambda t: t[1:].view(-1)[3:], id="view"),
        pytest.param(lambda t: t.detach(), id="detached"),
        pytest.param(lambda t: t.numpy(), id="numpy"),
        pytest.param(lambda t: t.untyped_storage(), id="storage"),
        pytest.param(lambda t: memoryview(t.numpy()), id="buffer"),
    ],
)
def test_memory_in_use_is_not_lent_again(hold: object) -> None:
    lender = Lender()
    first = lender.empty(2, NUMBERS).fill_(7.0)
    where = first.data_ptr()
    held = hold(first)  # type: ignore[operator]
    del first
    other = lender.empty(2, NUMBERS).fill_(1.0)
    assert other.data_ptr() != where
    del held
    assert lender.empty(2, NUMBERS).data_ptr() == where


def test_memory_is_free_again_when_autograd_drops_a_gradient() -> None:
    lender = Lender()

    class Lent(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, weight: torch.Tensor) -> torch.Tensor:
            return weight.sum()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return lender.empty(2, NUMBERS).fill_(1.0)

    weight = torch.nn.Parameter(torch.zeros(2, NUMBERS))
    Lent.apply(weight).backward()
    assert weight.grad is not None
    where = weight.grad.data_ptr()
    Lent.apply(weight).backward()  # added to the first, which is in use
    assert weight.grad.data_ptr() == where
    assert bool((weight.grad == 2.0).all())
    weight.grad = None
    assert lender.empty(2, NUMBERS).data_ptr() == where


def test_a_lender_keeps_no_more_than_it_may() -> None:
    lender = Lender(most=4 * LEAST)
    held = [lender.empty(2 * NUMBERS) for _ in range(3)]
    assert lender.held == 4 * LEAST  # the third is the allocator's
    del held
    lender.empty(3 * NUMBERS)  # free pieces make room
    assert lender.held <= 4 * LEAST
    assert lender.empty(5 * NUMBERS).shape == (5 * NUMBERS,)
    assert lender.held <= 4 * LEAST


def test_small_results_are_left_to_the_allocator() -> None:
    lender = Lender()
    assert lender.empty(NUMBERS - 1).shape == (NUMBERS - 1,)
    assert lender.empty(0, 5).shape == (0, 5)
    assert lender.held == 0


def test_threads_keep_memory_of_their_own() -> None:
    where = lent(2, NUMBERS).data_ptr()  # free again
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(lent(2, NUMBERS).data_ptr()))
    thread.start()
    thread.join()
    assert found != [where]


def test_gradients_that_are_kept_are_not_overwritten() -> None:
    n, genes = 16, NUMBERS // 4
    x = torch.randint(0, 3, (n, genes)).float()
    theta, library = torch.zeros(genes), torch.ones(n, 1)
    kept = []
    with use_backend("cpu"):
        for _ in range(4):
            scale, zi = (torch.randn(n, genes, requires_grad=True) for _ in range(2))
            value = zinb_nll(x, scale, library, theta, zi).sum()
            found = torch.autograd.grad(value, (scale, zi))
            kept.append((found, [t.clone() for t in found]))
    for found, copies in kept:
        for one, copy in zip(found, copies, strict=True):
            assert torch.equal(one, copy)
