"""The contract of a backend: one function for each operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .counts import Counts
from .products import Products


@dataclasses.dataclass(frozen=True, eq=False)
class Backend:
    """Which code computes each operation.

    Every operation is a forward / backward pair on plain tensors, with the arguments and results
    of the reference's functions of the same name. `but` makes a backend from another one, so that
    an operation that is not named there is the other's.

    Attributes
    ----------
    name
        What `functional.use_backend` calls it.
    title
        What computes, for people.
    nll_forward, nll_backward
        Likelihood of each cell from decoder logits.
    nll_and_gradients
        The likelihood with its gradients for an upstream gradient that is given. The gradients by
        scale and zero-inflation logits may be laid into given memory: that of the logits, too.
    nll_with_gradients, finish
        The likelihood with its gradients for the upstream gradient seen last, and the gradients
        for the one that came; None where backward computes them.
    heads_forward, heads_with_gradients
        Likelihood of each cell from the decoder's hidden units, and the same with all gradients
        for a given upstream one.
    heads_pay
        Whether these two are better than layers and likelihood one after the other; None where
        they never are.
    expected_upstream, is_expected
        The upstream gradient seen last, and whether one that came is that; None where backward
        computes the gradients.
    log_prob_forward, log_prob_backward
        Elementwise likelihood from mean and inverse dispersion.
    sample_and_kl_forward, sample_and_kl_backward, kl_forward, kl_backward
        Reparameterised sample with its KL divergence, and the divergence alone.
    hidden_forward, hidden_backward
        A hidden layer after its product: batch normalisation, ReLU, dropout.
    linear_forward, linear_weight_grad, dense_linear, row_sums
        First layer on CSR counts, any layer on dense input, total of each cell.
    products
        The three products of a dense layer, for steps without autograd.
    ordered
        The same counts, looked at once for all other operations.
    gather_dense, gather_csr, gather_columns
        Rows of counts that are kept on the device, and what else is known of these cells.
    add_losses
        Sums of the losses of cells.
    csr_pays
        Whether a minibatch of fixed size moves fewer bytes as CSR arrays that are longer than its
        rows say; None where the kernels take no such arrays.
    """

    name: str
    title: str
    nll_forward: Callable[..., Any]
    nll_backward: Callable[..., Any]
    nll_and_gradients: Callable[..., Any]
    heads_forward: Callable[..., Any]
    heads_with_gradients: Callable[..., Any]
    log_prob_forward: Callable[..., Any]
    log_prob_backward: Callable[..., Any]
    sample_and_kl_forward: Callable[..., Any]
    sample_and_kl_backward: Callable[..., Any]
    kl_forward: Callable[..., Any]
    kl_backward: Callable[..., Any]
    hidden_forward: Callable[..., Any]
    hidden_backward: Callable[..., Any]
    linear_forward: Callable[..., Any]
    linear_weight_grad: Callable[..., Any]
    dense_linear: Callable[..., Any]
    row_sums: Callable[..., Any]
    products: Products
    ordered: Callable[[Counts], Counts]
    gather_dense: Callable[..., Any]
    gather_csr: Callable[..., Any]
    gather_columns: Callable[..., Any]
    add_losses: Callable[..., None]
    nll_with_gradients: Callable[..., Any] | None = None
    finish: Callable[..., Any] | None = None
    expected_upstream: Callable[..., Any] | None = None
    is_expected: Callable[..., bool] | None = None
    heads_pay: Callable[..., bool] | None = None
    csr_pays: Callable[..., bool] | None = None

    def but(self, name: str, title: str, **operations: Any) -> Backend:
        """Return a backend with these operations, and this one's where none is named."""
        return dataclasses.replace(self, name=name, title=title, **operations)
