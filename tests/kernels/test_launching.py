"""Kernels are launched on the GPU that their tensors are on."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fastvae.kernels import launching
from fastvae.kernels.counts import Counts


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU number 1."""

    is_cuda = property(lambda self: True)
    device = property(lambda self: torch.device("cuda", 1))


def on_gpu() -> torch.Tensor:
    return torch.zeros(2, 2).as_subclass(OnGpu)


@pytest.mark.parametrize(
    "arguments",
    [
        (on_gpu(), torch.zeros(1)),
        (Counts((2, 2), on_gpu()), 0.5),
        (Counts((2, 2), None, on_gpu(), on_gpu(), on_gpu()), False),
        ((2, 2), None, on_gpu()),
    ],
    ids=["tensor", "dense counts", "CSR counts", "after a shape"],
)
@pytest.mark.parametrize("current", [0, 1])
def test_the_device_of_the_tensors_is_current(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], current: int
) -> None:
    now = [current]

    @contextmanager
    def device(wanted: torch.device) -> Any:
        before, now[0] = now[0], wanted.index
        yield
        now[0] = before

    monkeypatch.setattr(launching, "_several_gpus", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now[0])
    found = launching.on_own_device(lambda *given, **more: (now[0], given, more))(*arguments, a=1)
    assert found == (1, arguments, {"a": 1})
    assert now == [current]


def test_nothing_is_asked_of_a_gpu_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_several_gpus", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("asked for the GPU"))
    assert launching.on_own_device(lambda x, rest: rest)(torch.zeros(1), 3) == 3


def test_one_gpu_is_not_asked_which_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_several_gpus", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("asked for the GPU"))
    assert launching.on_own_device(lambda x, rest: rest)(on_gpu(), 3) == 3


def test_sizes_are_those_of_triton() -> None:
    triton = pytest.importorskip("triton")
    for size in [*range(1, 300), 1023, 1024, 1025, 2**20 + 1]:
        assert launching.next_power_of_2(size) == triton.next_power_of_2(size)
        for block in (1, 2, 3, 128):
            assert launching.ceil_div(size, block) == triton.cdiv(size, block)


def test_every_launcher_of_the_backend_is_guarded() -> None:
    """Each operation that is Triton's own goes through `on_own_device`."""
    pytest.importorskip("triton")
    import dataclasses

    from fastvae.kernels.backends import reference, triton

    for field in dataclasses.fields(triton.BACKEND):
        operation = getattr(triton.BACKEND, field.name)
        own = callable(operation) and operation is not getattr(reference.REFERENCE, field.name)
        if own and field.name not in ("csr_pays", "heads_pay"):  # which launch nothing
            cells = [c.cell_contents for c in operation.__closure__ or ()]
            guarded = [operation, *cells]
            assert any(hasattr(one, "__wrapped__") for one in guarded), field.name
