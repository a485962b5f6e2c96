"""Decoder heads with a ZINB likelihood: as one operation, and one after the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvae import functional as fn
from fastvae.functional.linear import dense_linear

from . import contenders
from .problems import make_counts, to_csr

HIDDEN = 128
APART = "fastvae, layers then likelihood"
HEADS = (*contenders.OURS, APART, "textbook", "scvi-tools")
RESULTS = ["nll", "hidden", "scale weight", "scale bias", "zi weight", "zi bias", "log theta"]
Heads = Callable[..., Tensor]  # of counts, log library, and what is differentiated by


class Problem:
    """A minibatch of CSR counts, hidden units and heads of two logits."""

    def __init__(self, n: int, genes: int, density: float, device: torch.device) -> None:
        counts = make_counts(n, genes, density, device)
        generator = torch.Generator(device).manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator)

        self.x = to_csr(counts)
        self.log_library = counts.sum(dim=1, keepdim=True).clamp(min=1).log()
        values = [normal(n, HIDDEN).relu_()]
        for spread, centre in ((1.2, 0.0), (0.7, -3.0)):
            values.append(normal(genes, HIDDEN) * spread / (HIDDEN / 2) ** 0.5)
            values.append(normal(genes) * 0.1 + centre)
        values.append(normal(genes) * 0.6 + 0.7)
        self.leaves = [value.requires_grad_() for value in values]

    def double(self) -> Problem:
        """Return the same in float64, with dense counts."""
        found = object.__new__(Problem)
        found.x, found.log_library = self.x.to_dense().double(), self.log_library.double()
        found.leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        return found


def together(x: Tensor, log_library: Tensor, *leaves: Tensor) -> Tensor:
    hidden, scale, scale_bias, zi, zi_bias, log_theta = leaves
    heads = (scale, scale_bias), (zi, zi_bias)
    return fn.zinb_heads_nll(x, hidden, heads[0], log_library, log_theta, heads[1])


def apart(loss: contenders.Loss, linear: Callable[..., Tensor]) -> Heads:
    """Layers, and the likelihood of the logits that they make."""

    def heads(x: Tensor, log_library: Tensor, *leaves: Tensor) -> Tensor:
        hidden, scale, scale_bias, zi, zi_bias, log_theta = leaves
        scale_logits, zi_logits = linear(hidden, scale, scale_bias), linear(hidden, zi, zi_bias)
        return loss(x, scale_logits, log_library, log_theta, zi_logits)

    return heads


def heads_of(name: str) -> Heads:
    if name == APART:
        return apart(fn.zinb_nll, dense_linear)
    if name == "textbook":
        return apart(contenders.densified(contenders.textbook), F.linear)
    if name == "scvi-tools":
        return apart(contenders.densified(contenders.scvi_tools("zinb")), F.linear)
    return contenders.on_backend(together, name.removeprefix("fastvae "))


def with_gradients(heads: Heads, problem: Problem) -> tuple[Tensor, ...]:
    nll = heads(problem.x, problem.log_library, *problem.leaves)
    return (nll.detach(), *torch.autograd.grad(nll.mean(), problem.leaves))
