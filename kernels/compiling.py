"""The likelihood as custom operators, which torch.compile takes as they are.

Outside of compilation backends are called directly, which costs less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .counts import Counts
from .parameters import Parameters

Optional = Tensor | None

# Given in full: older releases of torch cannot read list[bool] off the function.
_BACKWARD = (
    "(Tensor grad, Tensor? dense, Tensor? crow, Tensor? col, Tensor? values, Tensor scale_logits, "
    "Tensor log_library, Tensor? log_theta, Tensor? zi_logits, Tensor? theta_index, Tensor stats, "
    "bool[] needs) -> Tensor[]"
)


class Operators(NamedTuple):
    """Forward and backward of the likelihood, with the signatures of ``reference.py``."""

    nll_forward: Callable[..., tuple[Tensor, Tensor]]
    nll_backward: Callable[..., tuple[Optional, Optional, Optional, Optional]]


def register(
    name: str, forward: Callable[..., Any], backward: Callable[..., Any], statistics: int
) -> Operators:
    """Make operators ``fastvae::nll_forward_<name>`` and ``..._backward_<name>`` of a backend.

    Parameters
    ----------
    forward, backward
        The backend's own functions.
    statistics
        Numbers per cell that forward keeps for backward.
    """

    def counts(like: Tensor, *parts: Optional) -> Counts:
        return Counts((like.shape[0], like.shape[1]), *parts)

    @torch.library.custom_op(f"fastvae::nll_forward_{name}", mutates_args=())
    def forward_op(
        dense: Tensor | None,
        crow: Tensor | None,
        col: Tensor | None,
        values: Tensor | None,
        scale_logits: Tensor,
        log_library: Tensor,
        log_theta: Tensor | None,
        zi_logits: Tensor | None,
        theta_index: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        x = counts(scale_logits, dense, crow, col, values)
        p = Parameters(scale_logits, log_library, log_theta, zi_logits, theta_index)
        return forward(x, p)

    @forward_op.register_fake
    def _(dense, crow, col, values, scale_logits, *_):  # type: ignore[no-untyped-def]
        n = scale_logits.shape[0]
        return (
            scale_logits.new_empty(n, dtype=torch.float32),
            scale_logits.new_empty(n, statistics, dtype=torch.float32),
        )

    @torch.library.custom_op(f"fastvae::nll_backward_{name}", mutates_args=(), schema=_BACKWARD)
    def backward_op(
        grad: Tensor,
        dense: Tensor | None,
        crow: Tensor | None,
        col: Tensor | None,
        values: Tensor | None,
        scale_logits: Tensor,
        log_library: Tensor,
        log_theta: Tensor | None,
        zi_logits: Tensor | None,
        theta_index: Tensor | None,
        stats: Tensor,
        needs: list[bool],
    ) -> list[Tensor]:
        x = counts(scale_logits, dense, crow, col, values)
        p = Parameters(scale_logits, log_library, log_theta, zi_logits, theta_index)
        grads = backward(grad, x, p, stats, tuple(needs))
        return [grad.new_empty(0) if g is None else g for g in grads]

    @backward_op.register_fake
    def _(grad, dense, crow, col, values, scale, library, theta, zi, *rest):  # type: ignore[no-untyped-def]
        dtypes = scale.dtype, torch.float32, torch.float32, scale.dtype
        return [
            grad.new_empty(0) if t is None or not need else t.new_empty(t.shape, dtype=dtype)
            for t, dtype, need in zip((scale, library, theta, zi), dtypes, rest[-1], strict=True)
        ]

    def nll_forward(x: Counts, p: Parameters) -> tuple[Tensor, Tensor]:
        return forward_op(*x[1:], *p)

    def nll_backward(
        grad: Tensor, x: Counts, p: Parameters, stats: Tensor, needs: Sequence[bool]
    ) -> tuple[Optional, Optional, Optional, Optional]:
        made = backward_op(grad, *x[1:], *p, stats, list(needs))
        wanted = [need and t is not None for need, t in zip(needs, p[:4], strict=True)]
        by_scale, by_library, by_theta, by_zi = (
            g if want else None for g, want in zip(made, wanted, strict=True)
        )
        return by_scale, by_library, by_theta, by_zi

    return Operators(nll_forward, nll_backward)


def either(compiled: Callable[..., Any], direct: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled` while torch.compile traces, `direct` otherwise."""

    def run(*arguments: Any) -> Any:
        return (compiled if torch.compiler.is_compiling() else direct)(*arguments)

    run.__doc__ = direct.__doc__
    return run
