"""The CPU backend: the heavy operations by libfastvae_cpu, in float32.

Counts as CSR must have columns that increase strictly within each row; others are laid out
densely first. While torch.compile traces, the likelihood goes through custom operators and the
small operations are the reference's, which it fuses.
"""

from __future__ import annotations

from torch.nn import functional as F

from ..compiling import either, register
from ..heads.cpu import HEADS
from ..hidden import cpu as hidden
from ..latent import cpu as latent
from ..likelihood import cpu as likelihood
from ..linear import cpu as linear
from ..linear import dense
from ..native import library, ordered
from .reference import REFERENCE

_compiled = register("cpu", likelihood.nll_forward, likelihood.nll_backward, statistics=0)
_held_back = bool(library.fastvae_blas_is_held_back())

BACKEND = REFERENCE.but(
    name="cpu",
    title="compiled CPU kernels",
    nll_forward=either(_compiled.nll_forward, likelihood.nll_forward),
    nll_backward=either(_compiled.nll_backward, likelihood.nll_backward),
    nll_and_gradients=likelihood.nll_and_gradients,
    heads_forward=HEADS.heads_forward,
    heads_with_gradients=HEADS.heads_with_gradients,
    heads_pay=HEADS.pay,
    nll_with_gradients=likelihood.nll_with_gradients,
    finish=likelihood.finish,
    expected_upstream=likelihood.expected_upstream,
    is_expected=likelihood.is_expected,
    sample_and_kl_forward=either(REFERENCE.sample_and_kl_forward, latent.sample_and_kl_forward),
    sample_and_kl_backward=either(REFERENCE.sample_and_kl_backward, latent.sample_and_kl_backward),
    hidden_forward=hidden.hidden_forward,
    hidden_backward=hidden.hidden_backward,
    linear_forward=either(REFERENCE.linear_forward, linear.linear_forward),
    linear_weight_grad=either(REFERENCE.linear_weight_grad, linear.linear_weight_grad),
    dense_linear=dense.linear if _held_back else F.linear,
    products=dense.FASTEST,
    ordered=ordered,
    row_sums=either(REFERENCE.row_sums, linear.row_sums),
)
