"""A capture that fails leaves the device as it was, and the plain step runs there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import small_data

from fastvae import Model
from fastvae.train.capture import Recorder
from fastvae.train.cuda_graph import StaticStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")


def fit(device: str = "cuda", **options: Any) -> Model:
    model = Model(small_data(20, 12), batch_key="batch", n_latent=3, n_hidden=16)
    return model.fit(2, 8, seed=0, device=device, progress=False, **options)


def losses(model: Model) -> list[list[float]]:
    return [model.history[name].tolist() for name in ("train_elbo", "validation_elbo")]


@pytest.mark.parametrize("moment", ["warm-up", "capture", "read"])
def test_the_plain_step_runs_after_a_failure(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """With the weights and the random numbers of a run that never tried to capture."""
    plain = fit(cuda_graph=False)
    step, calls = StaticStep.step, []

    def failing(self: StaticStep) -> None:
        calls.append(torch.cuda.is_current_stream_capturing())
        step(self)
        if moment == "warm-up" and len(calls) == 2:
            raise RuntimeError("made to fail")
        if calls[-1] and moment == "capture":
            raise RuntimeError("made to fail")
        if calls[-1] and moment == "read":
            float(self.sums.sum())  # the host may not wait for a stream that captures

    monkeypatch.setattr(StaticStep, "step", failing)
    stream = torch.cuda.current_stream()
    model = fit()
    assert torch.cuda.current_stream() == stream
    assert not torch.cuda.is_current_stream_capturing()
    assert calls == ([False] * 2 if moment == "warm-up" else [*[False] * 3, True])
    assert losses(model) == losses(plain)


def test_random_numbers_go_on_as_if_nothing_had_been_recorded() -> None:
    x, device = torch.zeros(4, device="cuda"), torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.get_rng_state(device)
    Recorder(device).record([x.normal_])
    assert torch.equal(torch.cuda.get_rng_state(device), before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_trains_on_a_device_that_is_not_the_current_one() -> None:
    with torch.cuda.device(0):
        first, second = fit("cuda:0"), fit("cuda:1")
        assert torch.cuda.current_device() == 0
    assert losses(first) == losses(second)
