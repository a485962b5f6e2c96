"""The torch backend: every operation in pure torch.

It runs on any device and in float64, and it is what the other backends are tested against.
"""

from __future__ import annotations

from torch.nn import functional as F

from ..backend import Backend
from ..gather import reference as gather
from ..heads import reference as heads
from ..hidden import reference as hidden
from ..latent import reference as latent
from ..likelihood import reference as likelihood
from ..linear import reference as linear
from ..losses import reference as losses
from ..products import TORCH

REFERENCE = Backend(
    name="torch",
    title="torch operations",
    nll_forward=likelihood.nll_forward,
    nll_backward=likelihood.nll_backward,
    nll_and_gradients=likelihood.nll_and_gradients,
    heads_forward=heads.heads_forward,
    heads_with_gradients=heads.heads_with_gradients,
    log_prob_forward=likelihood.log_prob_forward,
    log_prob_backward=likelihood.log_prob_backward,
    sample_and_kl_forward=latent.sample_and_kl_forward,
    sample_and_kl_backward=latent.sample_and_kl_backward,
    kl_forward=latent.kl_forward,
    kl_backward=latent.kl_backward,
    hidden_forward=hidden.hidden_forward,
    hidden_backward=hidden.hidden_backward,
    linear_forward=linear.linear_forward,
    linear_weight_grad=linear.linear_weight_grad,
    dense_linear=F.linear,
    row_sums=linear.row_sums,
    products=TORCH,
    ordered=lambda x: x,
    gather_dense=gather.gather_dense,
    gather_csr=gather.gather_csr,
    gather_columns=gather.gather_columns,
    add_losses=losses.add_losses,
)
