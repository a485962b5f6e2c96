"""Who computes the likelihood: this package's backends, the textbook (compiled too), scvi-tools.

A contender is a function of x and the decoder's output that returns the loss of each cell (N,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvae import functional as fn

from .problems import Problem
from .results import short

NLL: dict[str, Callable[..., Tensor]] = {
    "zinb": fn.zinb_nll,
    "nb": fn.nb_nll,
    "poisson": fn.poisson_nll,
}
BACKENDS = ("triton", "cpu", "torch")
OURS = ("fastvae cpu", "fastvae triton", "fastvae torch")
CAPTURABLE = ("triton", "textbook", "compiled textbook")  # the others wait for the host
Loss = Callable[..., Tensor]


def textbook(
    x: Tensor,
    scale_logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None = None,
    zi_logits: Tensor | None = None,
) -> Tensor:
    """The usual form from decoder logits: softmax, rate, differences of lgammas, sum."""
    eps = 1e-8
    mu = log_library.exp() * torch.softmax(scale_logits, dim=-1)
    if log_theta is None:
        return -(torch.xlogy(x, mu) - mu - torch.lgamma(x + 1)).sum(dim=-1)
    theta = log_theta.exp()
    log_total = torch.log(theta + mu + eps)
    zero = theta * (torch.log(theta + eps) - log_total)
    nb = zero + x * (torch.log(mu + eps) - log_total)
    nb = nb + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    if zi_logits is None:
        return -nb.sum(dim=-1)
    case_zero = F.softplus(zero - zi_logits) - F.softplus(-zi_logits)
    case_more = nb - zi_logits - F.softplus(-zi_logits)
    return -torch.where(x < eps, case_zero, case_more).sum(dim=-1)


def scvi_tools(family: str) -> Loss:
    """Their distributions, built and asked as their decoder and loss do."""
    from scvi import distributions

    def loss(
        x: Tensor,
        scale_logits: Tensor,
        log_library: Tensor,
        log_theta: Tensor | None = None,
        zi_logits: Tensor | None = None,
    ) -> Tensor:
        scale = torch.softmax(scale_logits, dim=-1)
        rate = log_library.exp() * scale
        if family == "poisson":
            px = distributions.Poisson(rate=rate, scale=scale)
        else:
            assert log_theta is not None
            parameters: dict[str, Any] = {"mu": rate, "theta": log_theta.exp(), "scale": scale}
            if family == "nb":
                px = distributions.NegativeBinomial(**parameters)
            else:
                px = distributions.ZeroInflatedNegativeBinomial(**parameters, zi_logits=zi_logits)
        return -px.log_prob(x).sum(dim=-1)

    return loss


def on_backend(loss: Loss, backend: str) -> Loss:
    def forced(*args: Tensor) -> Tensor:
        with fn.use_backend(backend):
            return loss(*args)

    return forced


def densified(loss: Loss) -> Loss:
    """For contenders that take dense counts only: making them dense is part of their time."""

    def dense(x: Tensor, *args: Tensor) -> Tensor:
        return loss(x if x.layout == torch.strided else x.to_dense(), *args)

    return dense


def available_backends(device: torch.device) -> dict[str, str | None]:
    """Each backend's name, with the reason where it cannot run on this device."""
    x = torch.ones(2, 3, device=device)
    found: dict[str, str | None] = {}
    for name in BACKENDS:
        try:
            value = on_backend(fn.poisson_nll, name)(x, x, x[:, :1])
            found[name] = None if bool(torch.isfinite(value).all()) else "gives no finite number"
        except Exception as error:
            found[name] = short(error)
    return found


def contenders(family: str, backends: list[str]) -> tuple[dict[str, Loss], dict[str, str]]:
    """Everybody that needs no compiler, and why somebody is missing."""
    losses: dict[str, Loss] = {name: on_backend(NLL[family], name) for name in backends}
    losses["textbook"] = densified(textbook)
    missing = {}
    try:
        losses["scvi-tools"] = densified(scvi_tools(family))
    except Exception as error:
        missing["scvi-tools"] = short(error)
    return losses, missing


def compiled(what: str, family: str) -> Loss:
    """Compiled for static shapes in torch's default mode; `forget` before other shapes."""
    if what == "textbook":
        return densified(torch.compile(textbook, dynamic=False))
    return on_backend(torch.compile(NLL[family], dynamic=False), "torch")


def forget() -> None:
    """Drop what was compiled: past 8 shapes of one function torch would silently run it eagerly."""
    torch._dynamo.reset()


def forward(loss: Loss, problem: Problem) -> Callable[[], Tensor]:
    x, parameters = problem.x, problem.parameters()

    def run() -> Tensor:
        with torch.no_grad():
            return loss(x, *parameters)

    return run


def forward_backward(loss: Loss, problem: Problem) -> Callable[[], tuple[Tensor, ...]]:
    """The loss of each cell and the gradients of their sum by what training updates."""
    x, parameters, leaves = problem.x, problem.parameters(), problem.leaves()

    def run() -> tuple[Tensor, ...]:
        nll = loss(x, *parameters)
        return (nll.detach(), *torch.autograd.grad(nll.sum(), leaves))

    return run


def unavailable(device: torch.device) -> dict[str, str]:
    """This package's backends that cannot be timed on this device, with the reason."""
    found = {f"fastvae {k}": v for k, v in available_backends(device).items() if v}
    if device.type == "cpu":
        found["fastvae triton"] = "needs a GPU (the interpreter's speed says nothing)"
    return found
