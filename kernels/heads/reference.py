"""Heads and likelihood in torch, all cells at once: what the blocks are held to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..counts import Counts
from ..likelihood import reference as likelihood
from ..parameters import Parameters
from .parameters import HeadGradients, HeadNeeds, HeadParameters


def _decoded(p: HeadParameters, dtype: torch.dtype) -> tuple[Tensor, Parameters]:
    """Hidden units in the dtype of the products, and the logits."""
    hidden = p.hidden.to(dtype)

    def head(weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
        if weight is None:
            return None
        return F.linear(hidden, weight.to(dtype), None if bias is None else bias.to(dtype))

    scale_logits = head(p.scale_weight, p.scale_bias)
    assert scale_logits is not None
    log_theta = p.log_theta if p.theta_weight is None else head(p.theta_weight, p.theta_bias)
    zi_logits = head(p.zi_weight, p.zi_bias)
    return hidden, Parameters(scale_logits, p.log_library, log_theta, zi_logits, p.theta_index)


def heads_forward(x: Counts, p: HeadParameters, dtype: torch.dtype | None = None) -> Tensor:
    """Negative log-likelihood per cell (N,); products in `dtype` where one is given."""
    return likelihood.nll_forward(x, _decoded(p, p.product_dtype(dtype))[1])[0]


def heads_with_gradients(
    grad: Tensor,
    x: Counts,
    p: HeadParameters,
    needs: HeadNeeds,
    dtype: torch.dtype | None = None,
    into: HeadGradients | None = None,
) -> tuple[Tensor, HeadGradients]:
    """Negative log-likelihood per cell, and its gradients times an upstream one (N,).

    Sums are taken in float32 at least. `into` has memory for the gradients that are wanted.
    """
    products = p.product_dtype(dtype)
    hidden, logits = _decoded(p, products)
    nll, norm = likelihood.nll_forward(x, logits)
    by_logits = likelihood.nll_backward(grad, x, logits, norm, needs.of_logits(p))
    by_scale, by_library, by_theta, by_zi = by_logits
    sums = p.result_dtype(products)
    found: dict[str, Any] = {"log_library": by_library if needs.log_library else None}
    heads = {"scale": (p.scale_weight, by_scale), "zi": (p.zi_weight, by_zi)}
    if p.theta_weight is not None:
        heads["theta"] = p.theta_weight, by_theta
    elif needs.log_theta:
        found["log_theta"] = by_theta
    by_hidden = torch.zeros(hidden.shape, dtype=sums, device=hidden.device)
    for name, (weight, d) in heads.items():
        if weight is None or d is None:
            continue
        d = d.to(products)
        by_hidden += d @ weight.to(products)
        found[f"{name}_weight"] = d.t() @ hidden
        found[f"{name}_bias"] = d.sum(dim=0, dtype=sums)
    found["hidden"] = by_hidden
    return nll, handed_over(found, p, needs, into)


def handed_over(
    found: dict[str, Any], p: HeadParameters, needs: HeadNeeds, into: HeadGradients | None
) -> HeadGradients:
    """The gradients that are wanted, in the dtypes of their parameters, in `into` where given."""
    gradients: dict[str, Tensor] = {}
    for name, need in needs._asdict().items():
        parameter, gradient = getattr(p, name), found.get(name)
        if need and parameter is not None and gradient is not None:
            target = None if into is None else getattr(into, name)
            if target is None:
                gradients[name] = gradient.to(parameter.dtype)
            elif target is not gradient:
                target.copy_(gradient)
                gradients[name] = target
            else:
                gradients[name] = target
    return HeadGradients(**gradients)
