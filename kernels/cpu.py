"""The CPU backend: the functions of ``reference.py``, the heavy ones by libfastvae_cpu.

Counts as CSR must have columns that increase strictly within each row; others are laid out
densely first. While torch.compile traces, the likelihood goes through custom operators and the
small operations are the reference's, which it fuses.
"""

from __future__ import annotations

from torch.nn import functional as F

from . import cpu_layers, cpu_likelihood, dense, operators, reference
from .cpu_likelihood import finish, nll_with_gradients
from .native import library
from .operators import either
from .reference import kl_backward, kl_forward, log_prob_backward, log_prob_forward

__all__ = [
    "dense_linear",
    "finish",
    "kl_backward",
    "kl_forward",
    "linear_forward",
    "linear_weight_grad",
    "log_prob_backward",
    "log_prob_forward",
    "nll_backward",
    "nll_forward",
    "nll_with_gradients",
    "row_sums",
    "sample_and_kl_backward",
    "sample_and_kl_forward",
]

_operators = operators.register(
    "cpu", cpu_likelihood.nll_forward, cpu_likelihood.nll_backward, statistics=0
)


nll_forward = either(_operators.nll_forward, cpu_likelihood.nll_forward)
nll_backward = either(_operators.nll_backward, cpu_likelihood.nll_backward)
sample_and_kl_forward = either(reference.sample_and_kl_forward, cpu_layers.sample_and_kl_forward)
sample_and_kl_backward = either(reference.sample_and_kl_backward, cpu_layers.sample_and_kl_backward)
linear_forward = either(reference.linear_forward, cpu_layers.linear_forward)
row_sums = either(reference.row_sums, cpu_layers.row_sums)
linear_weight_grad = either(reference.linear_weight_grad, cpu_layers.linear_weight_grad)

_by_onednn = bool(library.fastvae_blas_is_held_back()) and dense.available()
dense_linear = dense.linear if _by_onednn else F.linear
