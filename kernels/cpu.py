"""The CPU backend: the functions of ``reference.py``, the heavy ones by libfastvae_cpu.

Counts as CSR must have columns that increase strictly within each row; others are laid out
densely first. While torch.compile traces, the likelihood goes through custom operators and the
small operations are the reference's, which it fuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import cpu_layers, cpu_likelihood, operators, reference
from .cpu_likelihood import finish, nll_with_gradients
from .native import instruction_set, use_instruction_set
from .reference import kl_backward, kl_forward, log_prob_backward, log_prob_forward

__all__ = [
    "finish",
    "instruction_set",
    "kl_backward",
    "kl_forward",
    "linear_forward",
    "linear_weight_grad",
    "log_prob_backward",
    "log_prob_forward",
    "nll_backward",
    "nll_forward",
    "nll_with_gradients",
    "sample_and_kl_backward",
    "sample_and_kl_forward",
    "use_instruction_set",
]

_operators = operators.register(
    "cpu", cpu_likelihood.nll_forward, cpu_likelihood.nll_backward, statistics=0
)


def _either(compiled: Callable[..., Any], direct: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        return (compiled if torch.compiler.is_compiling() else direct)(*arguments)

    run.__doc__ = direct.__doc__
    return run


nll_forward = _either(_operators.nll_forward, cpu_likelihood.nll_forward)
nll_backward = _either(_operators.nll_backward, cpu_likelihood.nll_backward)
sample_and_kl_forward = _either(reference.sample_and_kl_forward, cpu_layers.sample_and_kl_forward)
sample_and_kl_backward = _either(
    reference.sample_and_kl_backward, cpu_layers.sample_and_kl_backward
)
linear_forward = _either(reference.linear_forward, cpu_layers.linear_forward)
linear_weight_grad = _either(reference.linear_weight_grad, cpu_layers.linear_weight_grad)
