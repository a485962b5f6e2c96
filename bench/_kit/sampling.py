"""Sampling with KL: steps of every contender, and what of their results can be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastvae import functional as fn

from .contenders import on_backend

SAMPLE_RESULTS = ["kl", "q_v", "q_mean", "q_log_var"]


def textbook_sample(q_mean: Tensor, q_log_var: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q_var = torch.exp(q_log_var) + 1e-4
    posterior = torch.distributions.Normal(q_mean, q_var.sqrt(), validate_args=False)
    prior = torch.distributions.Normal(
        torch.zeros_like(q_mean), torch.ones_like(q_mean), validate_args=False
    )
    kl = torch.distributions.kl_divergence(posterior, prior).sum(dim=1)
    return posterior.rsample(), q_mean, q_var, kl


def sampler(name: str) -> Callable[..., Any]:
    return textbook_sample if name == "textbook" else on_backend(fn.sample_and_kl, name)


def kl_with_gradients(function: Callable[..., Any], *heads: Tensor) -> list[Tensor]:
    """What does not depend on the noise, which differs by backend."""
    _, _, q_var, kl = function(*heads)
    grads = torch.autograd.grad(kl.sum() + q_var.sum(), heads)
    return [kl.detach(), q_var.detach(), *grads]


def sampling_step(function: Callable[..., Any], *heads: Tensor) -> Callable[[], Any]:
    def run() -> Any:
        z, _, _, kl = function(*heads)
        return torch.autograd.grad(z.sum() + kl.sum(), heads)

    return run
