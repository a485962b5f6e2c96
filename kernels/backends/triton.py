"""The Triton backend: each operation in as few kernels as it takes.

While torch.compile traces, the likelihood goes through custom operators, which it takes as they
are; otherwise the launchers are called directly, which costs less. The KL divergence alone is too
small for kernels of its own, and dense products are the vendor's.
"""

from __future__ import annotations

from ..compiling import either, register
from ..gather import gpu as gather
from ..heads.gpu import HEADS
from ..hidden import gpu as hidden
from ..latent import gpu as latent
from ..launching import on_own_device
from ..likelihood import gpu as likelihood
from ..likelihood import gpu_log_prob as elementwise
from ..linear import cost
from ..linear import gpu as linear
from ..losses import gpu as losses
from .reference import REFERENCE

_nll_forward = on_own_device(likelihood.nll_forward)
_nll_backward = on_own_device(likelihood.nll_backward)
_compiled = register("triton", _nll_forward, _nll_backward, statistics=0)

BACKEND = REFERENCE.but(
    name="triton",
    title="Triton kernels",
    nll_forward=either(_compiled.nll_forward, _nll_forward),
    nll_backward=either(_compiled.nll_backward, _nll_backward),
    nll_and_gradients=on_own_device(likelihood.nll_and_gradients),
    nll_with_gradients=on_own_device(likelihood.nll_with_gradients),
    finish=on_own_device(likelihood.finish),
    heads_forward=on_own_device(HEADS.heads_forward),
    heads_with_gradients=on_own_device(HEADS.heads_with_gradients),
    heads_pay=HEADS.pay,
    log_prob_forward=on_own_device(elementwise.log_prob_forward),
    log_prob_backward=on_own_device(elementwise.log_prob_backward),
    sample_and_kl_forward=on_own_device(latent.sample_and_kl_forward),
    sample_and_kl_backward=on_own_device(latent.sample_and_kl_backward),
    hidden_forward=on_own_device(hidden.hidden_forward),
    hidden_backward=on_own_device(hidden.hidden_backward),
    linear_forward=on_own_device(linear.linear_forward),
    linear_weight_grad=on_own_device(linear.linear_weight_grad),
    row_sums=either(REFERENCE.row_sums, on_own_device(linear.row_sums)),
    gather_dense=on_own_device(gather.gather_dense),
    gather_csr=on_own_device(gather.gather_csr),
    gather_columns=on_own_device(gather.gather_columns),
    add_losses=on_own_device(losses.add_losses),
    csr_pays=cost.csr_pays,
)
