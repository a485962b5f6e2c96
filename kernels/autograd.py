"""What the autograd Functions share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def first_derivative_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse ``create_graph=True``: silently constant gradients would be wrong ones."""

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "fastvae operations have first derivatives only; call backward or autograd.grad "
                "without create_graph=True"
            )
        return backward(ctx, *grads)

    return checked
