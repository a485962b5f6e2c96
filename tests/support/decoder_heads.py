"""Random problems of decoder heads with a likelihood, and ways to solve them."""

from __future__ import annotations

from typing import Any

import torch
from fastvae.kernels.counts import Counts
from fastvae.kernels.heads.driver import BlockedHeads, sweep_of
from fastvae.kernels.heads.function import HeadsNLL
from fastvae.kernels.heads.parameters import HeadNeeds, HeadParameters
from fastvae.kernels.likelihood import reference
from fastvae.kernels.products import TORCH
from torch.nn import functional as F

from fastvae import functional as fn
from fastvae.functional import dispatch

DISPERSIONS = ["gene", "table", "cell"]
NAMES = HeadNeeds._fields
TORCH_BLOCKS = BlockedHeads(
    sweep_of(reference.nll_forward, reference.nll_and_gradients), TORCH, 1, 8, early=False
)


def problem(family, shape, dispersion="gene", dtype=torch.float64, hidden=5, bias=True):
    """Counts and parameters as leaves, by name; those that there are."""
    n, g = shape
    x = torch.poisson(torch.rand(n, g).pow(3) * 30) * (torch.rand(n, g) < 0.3)
    heads = ["scale"] + ["zi"] * (family == "zinb")
    heads += ["theta"] * (family != "poisson" and dispersion == "cell")
    leaves = {"hidden": torch.randn(n, hidden).relu()}
    for head in heads:
        leaves[f"{head}_weight"] = torch.randn(g, hidden) / hidden**0.5
        if bias:
            leaves[f"{head}_bias"] = torch.randn(g)
    leaves["log_library"] = 2 + torch.randn(n, 1)
    if family != "poisson" and dispersion != "cell":
        leaves["log_theta"] = 2 * torch.randn(g) if dispersion == "gene" else torch.randn(3, g)
    leaves = {k: v.to(dtype).requires_grad_() for k, v in leaves.items()}
    index = None
    if family != "poisson" and dispersion == "table":
        index = torch.randint(0, 3, (n,))
    return x.to(dtype), leaves, index


def parameters(leaves, index=None):
    return HeadParameters(*(leaves.get(name) for name in NAMES), theta_index=index)


def counts(x):
    shape = x.shape[0], x.shape[1]
    if x.layout == torch.strided:
        return Counts(shape, x)
    return Counts(shape, None, x.crow_indices(), x.col_indices(), x.values())


def through_the_door(family, x, leaves, index=None, **more: Any):
    """The public function of the family."""
    heads = {
        name: (leaves[f"{name}_weight"], leaves.get(f"{name}_bias"))
        for name in ("scale", "zi", "theta")
        if f"{name}_weight" in leaves
    }
    theta = heads.get("theta", leaves.get("log_theta"))
    parts = [x, leaves["hidden"], heads["scale"], leaves["log_library"]]
    if family != "poisson":
        parts.append(theta)
        more["theta_index"] = index
    if family == "zinb":
        parts.append(heads["zi"])
    return getattr(fn, f"{family}_heads_nll")(*parts, **more)


def in_one_operation(x, leaves, index=None, *, backend=None, dtype=None):
    """The autograd Function, also where a backend would rather do without it."""
    p = parameters(leaves, index)
    chosen = backend or dispatch.select(*leaves.values())
    return HeadsNLL.apply(chosen, True, dtype, *counts(x), *p)


def in_small_blocks(backend, cells=8):
    """A backend whose blocks have few cells."""
    driver = {"cpu": "cpu", "triton": "gpu"}.get(backend.name)
    if driver is None:
        small = TORCH_BLOCKS
    else:
        import importlib

        small = importlib.import_module(f"fastvae.kernels.heads.{driver}").HEADS
    small = small._replace(cache=1, least=cells)
    return backend.but(
        name=backend.name,
        title="small blocks",
        heads_forward=small.heads_forward,
        heads_with_gradients=small.heads_with_gradients,
    )


def one_after_the_other(family, x, leaves, index=None):
    """Linear layers, then the likelihood of their logits."""

    def head(name):
        return F.linear(leaves["hidden"], leaves[f"{name}_weight"], leaves.get(f"{name}_bias"))

    log_theta = head("theta") if "theta_weight" in leaves else leaves.get("log_theta")
    parts = [x, head("scale"), leaves["log_library"]]
    keywords = {}
    if family != "poisson":
        parts.append(log_theta)
        keywords["theta_index"] = index
    if family == "zinb":
        parts.append(head("zi"))
    return getattr(fn, f"{family}_nll")(*parts, **keywords)


def differentiated(nll, leaves, upstream, **keywords):
    """Value and gradients by name."""
    grads = torch.autograd.grad(nll, list(leaves.values()), upstream, **keywords)
    return {"nll": nll.detach(), **dict(zip(leaves, grads, strict=True))}
