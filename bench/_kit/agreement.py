"""Contenders against float64, before anybody is timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastvae import functional as fn

from .contenders import NLL
from .problems import Problem, to_csr

LIMIT = 1e-4  # float32 arithmetic of any form stays far below
STRIP = 2**24  # entries that are compared at once


def exact(problem: Problem) -> list[Tensor]:
    """Loss and gradients in float64 from the torch backend, in strips of cells.

    Gradients by logits are kept rounded to float32: they are compared at 1e-4.
    """
    n, genes = problem.shape
    theta = problem.log_theta.detach().double().requires_grad_()
    by_theta = torch.zeros_like(theta)
    losses, by_logits = [], []
    step = max(1, STRIP // genes)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        x = problem.dense[rows].double()
        scale = problem.scale_logits.detach()[rows].double().requires_grad_()
        zi = problem.zi_logits.detach()[rows].double().requires_grad_()
        leaves = [scale, theta, zi][: len(problem.leaves())]
        library = problem.log_library[rows].double()
        with fn.use_backend("torch"):
            nll = NLL[problem.family](
                x if problem.layout == "dense" else to_csr(x), scale, library, *leaves[1:]
            )
        grads = torch.autograd.grad(nll.sum(), leaves)
        losses.append(nll.detach())
        by_logits.append([g.float() for g in grads if g.shape == scale.shape])
        if len(grads) > 1:
            by_theta += grads[1]
    logits = [torch.cat(strips) for strips in zip(*by_logits, strict=True)]
    result = [torch.cat(losses), logits[0]]
    if problem.family != "poisson":
        result.append(by_theta)
    return result + logits[1:]


def error(got: Tensor, want: Tensor) -> dict[str, float]:
    """Largest error relative to max(1, |exact|), and the error's norm relative to the whole."""
    largest = torch.zeros((), dtype=torch.float64, device=want.device)
    missed, total = largest.clone(), largest.clone()
    width = want.shape[-1] if want.dim() > 1 else 1
    for part, target in zip(
        got.split(max(1, STRIP // width)), want.split(max(1, STRIP // width)), strict=True
    ):
        target = target.double()
        off = part.double() - target
        # torch.maximum keeps a NaN, which then fails every comparison
        largest = torch.maximum(largest, (off.abs() / target.abs().clamp(min=1)).max())
        missed += off.square().sum()
        total += target.square().sum()
    return {
        "largest": float(largest),
        "norm": float((missed / total.clamp(min=1e-300)).sqrt()),
    }


def compare(got: Sequence[Tensor], want: Sequence[Tensor], names: Sequence[str]) -> dict[str, Any]:
    """Errors by name and whether the loss's largest and every norm are within the limit."""
    errors = {name: error(g, w) for name, g, w in zip(names, got, want, strict=True)}
    agrees = all(e["norm"] <= LIMIT for e in errors.values())
    agrees = agrees and errors[names[0]]["largest"] <= LIMIT
    return {"errors": errors, "agrees": agrees}
