"""Random likelihood problems, and what the textbook makes of them."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fastvae import functional as fn

LAYOUTS = ["gene", "table", "full"]
FAMILIES = ["poisson", "nb", "zinb"]


def textbook(family, x, logits, library, log_theta=None, zi_logits=None):
    """-sum_g log p, by the formulas as they stand in the literature."""
    mu = library.exp() * logits.softmax(dim=1)
    if family == "poisson":
        return -(torch.xlogy(x, mu) - mu - torch.lgamma(x + 1)).sum(dim=1)
    theta = log_theta.exp()
    nb = (
        torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
        + theta * (theta / (theta + mu)).log()
        + x * (mu / (theta + mu)).log()
    )
    if family == "nb":
        return -nb.sum(dim=1)
    at_zero = torch.logaddexp(zi_logits, nb) - F.softplus(zi_logits)
    return -torch.where(x == 0, at_zero, nb - F.softplus(zi_logits)).sum(dim=1)


def problem(family, shape, layout="gene", dtype=torch.float64):
    """Random counts, parameters as leaves, and the call's keyword arguments."""
    n, g = shape
    x = torch.poisson(torch.rand(n, g).pow(3) * 30) * (torch.rand(n, g) < 0.3)
    leaves = {"scale_logits": torch.randn(n, g), "log_library": 2 + torch.randn(n, 1)}
    keywords = {}
    if family != "poisson":
        rows = {"gene": (g,), "table": (3, g), "full": (n, g)}[layout]
        leaves["log_theta"] = 2 * torch.randn(*rows)
        if layout == "table":
            keywords["theta_index"] = torch.randint(0, 3, (n,))
    if family == "zinb":
        leaves["zi_logits"] = torch.randn(n, g)
    leaves = {k: v.to(dtype).requires_grad_() for k, v in leaves.items()}
    return x.to(dtype), leaves, keywords


def call(family, x, leaves, keywords):
    return getattr(fn, f"{family}_nll")(x, *leaves.values(), **keywords)
