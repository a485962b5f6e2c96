"""What is kept of a moment of training comes back into the same tensors."""

from __future__ import annotations

from typing import Any

import torch
from small_models import Toy

from fastvae.train.guard import all_finite
from fastvae.train.state import Moment, copy_state


def trained(module: Toy, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss, kl, _ = module(torch.rand(8, 30))
    (loss + kl).mean().backward()
    optimizer.step()


def state(module: Toy, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    entries = [value for some in optimizer.state.values() for value in some.values()]
    return [*module.state_dict().values(), *entries]


def made() -> tuple[Toy, torch.optim.Adam, Moment]:
    module = Toy()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, fused=True)
    return module, optimizer, Moment(module, optimizer)


def test_everything_comes_back_into_the_tensors_of_now() -> None:
    module, optimizer, moment = made()
    trained(module, optimizer)
    moment.take(3)
    before = [value.clone() for value in state(module, optimizer)]
    torch.rand(5)
    trained(module, optimizer)
    live = state(module, optimizer)
    moment.restore()
    assert moment.steps == 3
    assert len(live) == len(before) > 10
    for now, value, old in zip(state(module, optimizer), live, before, strict=True):
        assert now.data_ptr() == value.data_ptr()
        assert torch.equal(now, old)


def test_entries_of_the_optimiser_that_came_later_begin_anew() -> None:
    module, optimizer, moment = made()
    moment.take(0)
    trained(module, optimizer)
    moment.restore()
    assert not any(bool(v.any()) for some in optimizer.state.values() for v in some.values())
    fresh, other, _ = made()
    for m, o in ((module, optimizer), (fresh, other)):
        torch.manual_seed(1)
        trained(m, o)
    for a, b in zip(state(module, optimizer), state(fresh, other), strict=True):
        assert torch.equal(a, b)


def test_taking_it_again_uses_the_same_memory() -> None:
    module, optimizer, moment = made()
    trained(module, optimizer)
    moment.take(0)
    places = {name: value.data_ptr() for name, value in moment._kept.items()}
    trained(module, optimizer)
    moment.take(1)
    assert {name: value.data_ptr() for name, value in moment._kept.items()} == places
    trained(module, optimizer)
    want: list[Any] = [v.clone() for v in moment._kept.values()]
    moment.restore()
    for a, b in zip(state(module, optimizer), want, strict=True):
        assert torch.equal(a, b)


def test_a_copy_of_the_weights_takes_the_memory_of_an_earlier_one_where_it_fits() -> None:
    module, optimizer, _ = made()
    first = copy_state(module)
    places = {name: value.data_ptr() for name, value in first.items()}
    trained(module, optimizer)
    first["weight"] = first["weight"].double()
    second = copy_state(module, first)
    assert second["weight"].data_ptr() != first["weight"].data_ptr()
    assert {n: v.data_ptr() for n, v in second.items() if n != "weight"} == {
        name: place for name, place in places.items() if name != "weight"
    }
    wanted = {name: value.clone() for name, value in module.state_dict().items()}
    trained(module, optimizer)
    assert second.keys() == wanted.keys()
    for name, value in wanted.items():
        assert second[name].dtype == value.dtype
        assert torch.equal(second[name], value)


def test_all_finite_looks_at_every_number() -> None:
    large = torch.full((4,), 3e38)  # the norm overflows, the numbers do not
    fine = [large, torch.zeros(2, dtype=torch.float64), torch.tensor([1]), torch.zeros(3, 0)]
    assert all_finite(fine)
    assert all_finite([])
    for bad in (torch.nan, torch.inf, -torch.inf):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            assert not all_finite([*fine, torch.tensor([0.0, bad], dtype=dtype)])
