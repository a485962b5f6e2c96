"""Logarithms of the counts that are handed over with them are not computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastvae import VAE
from fastvae.functional.gather import CountLogs
from fastvae.vae.stock import takes_logs


def counts() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.poisson(torch.rand(12, 30) * 3)


def logs_of(x: torch.Tensor) -> CountLogs:
    dense = x.to_dense()
    log1p = dense.log1p() if x.layout == torch.strided else x.values().log1p()
    return CountLogs(log1p, dense.sum(1, keepdim=True).clamp(1.0).log())


def losses(model: VAE, x: torch.Tensor, **known: Any) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(2)
    l_mean, l_var = torch.full((12, 1), 3.0), torch.ones(12, 1)
    return model(x, l_mean, l_var, torch.zeros(12, 1, dtype=torch.int64), **known)[:2]


def made(**options: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(30, n_batch=2, n_latent=3, n_hidden=8, **options)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("log_variational", [False, True])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_the_same_loss(sparse: bool, observed: bool, log_variational: bool) -> None:
    x = counts().to_sparse_csr() if sparse else counts()
    model = made(use_observed_lib_size=observed, log_variational=log_variational)
    for found, want in zip(losses(model, x, logs=logs_of(x)), losses(model, x), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-5)


def test_they_are_used() -> None:
    model, x = made(use_observed_lib_size=True), counts()
    logs = logs_of(x)
    plain = losses(model, x)
    for other in (CountLogs(logs.log1p * 2, logs.log_library), logs._replace(log_library=x[:, :1])):
        assert not torch.allclose(losses(model, x, logs=other)[0], plain[0])


def test_a_replaced_part_is_given_the_counts() -> None:
    class Own(VAE):
        def inference(self, x: torch.Tensor, *rest: Any, **more: Any) -> Any:
            return super().inference(x, *rest, **more)

    torch.manual_seed(0)
    model, x = Own(30, n_batch=2, n_latent=3, n_hidden=8), counts()
    nothing = CountLogs(x * torch.nan, x[:, :1] * torch.nan)
    for found, want in zip(losses(model, x, logs=nothing), losses(model, x), strict=True):
        assert torch.equal(found, want)


def test_who_takes_them() -> None:
    class OwnForward(VAE):
        def forward(self, x: torch.Tensor, *rest: Any) -> Any:  # knows of no logs
            return super().forward(x, *rest)

    hooked = made()
    hooked.register_forward_pre_hook(lambda *_: None)
    assert takes_logs(made())
    assert not any(map(takes_logs, (OwnForward(30), hooked, made().double())))
