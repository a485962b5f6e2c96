"""The Triton backend: the functions of ``reference.py``, each in as few kernels as it takes.

While torch.compile traces, the likelihood goes through custom operators, which it takes as they
are; otherwise the launchers are called directly, which costs less.
"""

from __future__ import annotations

from torch.nn.functional import linear as dense_linear  # the vendor's BLAS

from . import likelihood, operators, reference, sparse
from .elementwise import log_prob_backward, log_prob_forward
from .gather import gather_csr, gather_dense
from .latent import sample_and_kl_backward, sample_and_kl_forward
from .reference import kl_backward, kl_forward  # too small for kernels of their own
from .sparse import linear_forward, linear_weight_grad
from .traffic import csr_pays

__all__ = [
    "csr_pays",
    "dense_linear",
    "gather_csr",
    "gather_dense",
    "kl_backward",
    "kl_forward",
    "linear_forward",
    "linear_weight_grad",
    "log_prob_backward",
    "log_prob_forward",
    "nll_backward",
    "nll_forward",
    "row_sums",
    "sample_and_kl_backward",
    "sample_and_kl_forward",
]

_operators = operators.register(
    "triton", likelihood.nll_forward, likelihood.nll_backward, statistics=3
)
nll_forward = operators.either(_operators.nll_forward, likelihood.nll_forward)
nll_backward = operators.either(_operators.nll_backward, likelihood.nll_backward)
row_sums = operators.either(reference.row_sums, sparse.row_sums)
