"""The likelihoods in torch: log p and its gradients for a matrix of entries.

Every entry is first treated as a zero count, which needs no gamma function; the nonzero ones
(5-10 % of a real matrix) are then computed apart and written over it. Everything is computed in
the widest dtype of the parameters, at least float32, and autograd casts the gradients back. The
mathematics is derived in README.md of this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .. import math_reference as nm
from ..counts import Counts
from ..parameters import Parameters, same_dtype

Pieces = TypeVar("Pieces", nm.PoissonPieces, nm.NBPieces)
Grads = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Entries(NamedTuple):
    """Parameters of a matrix of entries; `zi_logits` is None unless ZINB."""

    pieces: nm.PoissonPieces | nm.NBPieces
    zi_logits: Tensor | None

    def at(self, row: Tensor, col: Tensor) -> Entries:
        """The entries at the given positions."""
        p = self.pieces
        if isinstance(p, nm.PoissonPieces):
            return Entries(nm.PoissonPieces(p.log_mu[row, col], p.mu[row, col]), None)
        mu = None if p.mu_given is None else p.mu_given[row, col]
        at = (row, col) if p.theta.dim() == 2 else (col,)
        pieces = nm.nb_pieces(p.log_mu[row, col], mu, p.log_theta[at], p.theta[at])
        return Entries(pieces, None if self.zi_logits is None else self.zi_logits[row, col])


class EntryGrads(NamedTuple):
    """Gradients of the negative log probability; None where the family has no such parameter."""

    log_mu: Tensor
    log_theta: Tensor | None
    zi_logits: Tensor | None


def make_entries(
    log_mu: Tensor, mu: Tensor | None, log_theta: Tensor | None, zi_logits: Tensor | None
) -> Entries:
    """Join the parameters, log theta clamped to +-60; `mu` where it was the input."""
    if log_theta is None:
        return Entries(nm.PoissonPieces(log_mu, torch.exp(log_mu) if mu is None else mu), None)
    log_theta = log_theta.clamp(-nm.LOG_THETA_MAX, nm.LOG_THETA_MAX)
    return Entries(nm.nb_pieces(log_mu, mu, log_theta, torch.exp(log_theta)), zi_logits)


def _by_size(
    x: Tensor,
    p: Pieces,
    small: Callable[[Tensor, Pieces], Tensor],
    large: Callable[[Tensor, Pieces], Tensor],
) -> Tensor:
    """`small` at whole counts <= 8, `large` at the others and only there."""
    value = small(x, p)
    others = ~nm.is_small(x)
    if torch.compiler.is_compiling():
        return torch.where(others, large(x, p), value)
    rest = others.nonzero()[:, 0]
    if len(rest):
        fields: list[Any] = [None if field is None else field[rest] for field in p]
        value[rest] = large(x[rest], type(p)(*fields))
    return value


def _log_p_zero(p: Entries) -> Tensor:
    if isinstance(p.pieces, nm.PoissonPieces):
        return -p.pieces.mu
    log_p0 = nm.nb_zero(p.pieces)
    return log_p0 if p.zi_logits is None else nm.zero_inflate(log_p0, p.zi_logits)


def _log_p_positive(x: Tensor, p: Entries) -> Tensor:
    if isinstance(p.pieces, nm.PoissonPieces):
        return _by_size(x, p.pieces, nm.poisson_small, nm.poisson_saddle)
    value = _by_size(x, p.pieces, nm.nb_small, nm.nb_saddle)
    if p.zi_logits is None:
        return value
    return value - nm.softplus(p.zi_logits.clamp(max=nm.RESULT_MAX))


def _grads_zero(p: Entries, want_theta: bool) -> EntryGrads:
    nb = p.pieces
    if isinstance(nb, nm.PoissonPieces):
        return EntryGrads(nb.mu.clone(), None, None)
    d_mu = torch.sigmoid(-nb.u) * nb.mu
    d_theta = nm.nb_zero_dispersion_grad(nb) if want_theta else None
    if p.zi_logits is None:
        return EntryGrads(d_mu, d_theta, None)
    w = torch.sigmoid(nm.nb_zero(nb) - p.zi_logits)  # P(the zero is the NB's)
    d_zi = w - torch.sigmoid(-p.zi_logits)
    return EntryGrads(w * d_mu, None if d_theta is None else w * d_theta, d_zi)


def _grads_positive(x: Tensor, p: Entries, want_theta: bool) -> EntryGrads:
    nb = p.pieces
    if isinstance(nb, nm.PoissonPieces):
        return EntryGrads(nb.mu - x, None, None)
    d_theta = None
    if want_theta:
        d_theta = _by_size(x, nb, nm.nb_small_dispersion_grad, nm.nb_saddle_dispersion_grad)
    d_zi = None if p.zi_logits is None else torch.sigmoid(p.zi_logits)
    return EntryGrads(torch.sigmoid(-nb.u) * (nb.mu - x), d_theta, d_zi)


def _dense_under_compile(x: Counts) -> Tensor | None:
    # Positions have a data-dependent number, which a single graph cannot hold.
    return x.dense if torch.compiler.is_compiling() else None


def log_prob(x: Counts, p: Entries) -> Tensor:
    """log p(x) of every entry, (N, G)."""
    value = _log_p_zero(p)
    dense = _dense_under_compile(x)
    if dense is not None:
        dense = nm.bounded_count(dense.to(value.dtype))
        return torch.where(dense <= 0, value, _log_p_positive(dense, p))
    row, col, counts = x.positions(value.dtype)
    value[row, col] = _log_p_positive(nm.bounded_count(counts), p.at(row, col))
    return value


def log_prob_grads(x: Counts, p: Entries, want_theta: bool) -> EntryGrads:
    """Gradients of -log p(x) of every entry, (N, G) each."""
    zero = _grads_zero(p, want_theta)
    dense = _dense_under_compile(x)
    if dense is not None:
        dense = nm.bounded_count(dense.to(p.pieces.log_mu.dtype))
        positive = _grads_positive(dense, p, want_theta)
        d_theta, d_zi = (
            None if a is None or b is None else torch.where(dense <= 0, a, b)
            for a, b in zip(zero[1:], positive[1:], strict=True)
        )
        return EntryGrads(torch.where(dense <= 0, zero.log_mu, positive.log_mu), d_theta, d_zi)
    row, col, counts = x.positions(p.pieces.log_mu.dtype)
    positive = _grads_positive(nm.bounded_count(counts), p.at(row, col), want_theta)
    for whole, part in zip(zero, positive, strict=True):
        if whole is not None and part is not None:
            whole[row, col] = part
    return zero


def _from_logits(p: Parameters, norm: Tensor) -> Entries:
    scale_logits, log_library, log_theta, zi_logits, theta_index = p
    # The row maximum is taken off first: logits of 1e4 would otherwise cost log mu its digits.
    shift, log_sum = norm[:, :1], norm[:, 1:]
    log_mu = ((scale_logits - shift) + (log_library - log_sum)).clamp(max=nm.LOG_MU_MAX)
    if log_theta is not None and theta_index is not None:
        log_theta = log_theta[theta_index]
    return make_entries(log_mu, None, log_theta, zi_logits)


def nll_forward(x: Counts, p: Parameters) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood per cell (N,), and the row statistics (N, 2) backward needs.

    The statistics are the maximum of the scale logits and log sum exp of what lies below it.
    """
    p = p.same_dtype()
    scale_logits = p.scale_logits
    shift = scale_logits.amax(dim=1, keepdim=True)
    log_sum = (scale_logits - shift).exp_().sum(dim=1, keepdim=True).log()
    norm = torch.cat([shift, log_sum], dim=1)
    return nm.saturate(-log_prob(x, _from_logits(p, norm)).sum(dim=1)), norm


def nll_backward(
    grad: Tensor,
    x: Counts,
    p: Parameters,
    norm: Tensor,
    needs: tuple[bool, bool, bool, bool],
) -> Grads:
    """Gradients by scale logits, log library, log theta and zi logits, where `needs` says so."""
    p = p.same_dtype()
    scale_logits, _, log_theta, _, theta_index = p
    by_scale, by_library, by_theta, by_zi = needs
    grads = log_prob_grads(x, _from_logits(p, norm), by_theta)
    grad = grad[:, None]
    d_scale = d_library = d_theta = d_zi = None
    if by_scale or by_library:
        d = grads.log_mu * grad
        d_library = d.sum(dim=1, keepdim=True)
        if by_scale:
            softmax = torch.exp((scale_logits - norm[:, :1]) - norm[:, 1:])
            d_scale = torch.addcmul(d, softmax, d_library, value=-1)
    if by_theta and grads.log_theta is not None and log_theta is not None:
        d = grads.log_theta * grad
        if theta_index is not None:
            d_theta = torch.zeros_like(log_theta).index_add_(0, theta_index, d)
        else:
            d_theta = d.sum(dim=0) if log_theta.dim() == 1 else d
    if by_zi and grads.zi_logits is not None:
        d_zi = grads.zi_logits * grad
    return d_scale, d_library if by_library else None, d_theta, d_zi


def nll_and_gradients(
    grad: Tensor,
    x: Counts,
    p: Parameters,
    needs: tuple[bool, bool, bool, bool],
    out: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Grads]:
    """Negative log-likelihood per cell (N,), and its gradients for the upstream gradient `grad`.

    Parameters
    ----------
    grad : Tensor, (N,)
    x : Counts
    p : Parameters
    needs : bool for each of scale logits, log library, log theta and zi logits
        The other gradients are None.
    out : pair of Tensor or None, (N, G)
        Memory for the gradients by scale and by zi logits, of these logits' dtype; it may be the
        logits' own. New memory where None.
    """
    nll, norm = nll_forward(x, p)
    d_scale, d_library, d_theta, d_zi = nll_backward(grad, x, p, norm, needs)
    return nll, (laid_into(out[0], d_scale), d_library, d_theta, laid_into(out[1], d_zi))


def laid_into(out: Tensor | None, values: Tensor | None) -> Tensor | None:
    """`values` copied into `out`, where there are both."""
    return values if out is None or values is None else out.copy_(values)


def _from_mean(
    mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None, eps: float, floor: float = 0.0
) -> Entries:
    mu, theta, zi_logits = same_dtype(mu, theta, zi_logits)
    mu = mu + eps
    mu = torch.where(mu < 0, math.nan, mu.clamp(floor, math.exp(nm.LOG_MU_MAX)))
    return make_entries(torch.log(mu), mu, None if theta is None else torch.log(theta), zi_logits)


def log_prob_forward(
    x: Counts, mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None, eps: float
) -> Tensor:
    """Elementwise log probability (N, G) from mean and inverse dispersion.

    ``theta log1p(eps/theta) <= eps`` is what the textbook's other two eps add; it is left out.
    """
    return log_prob(x, _from_mean(mu, theta, zi_logits, eps))


def log_prob_backward(
    grad: Tensor,
    x: Counts,
    mu: Tensor,
    theta: Tensor | None,
    zi_logits: Tensor | None,
    eps: float,
    want_theta: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients by mu, theta and zi logits."""
    # a mean of 0 has gradients as well: those of the smallest one
    smallest = torch.finfo(torch.promote_types(mu.dtype, torch.float32)).tiny
    p = _from_mean(mu, theta, zi_logits, eps, floor=smallest)
    grads = log_prob_grads(x, p, want_theta)
    d_mu = -grad * nm.saturate(grads.log_mu / p.pieces.mu)
    d_theta = d_zi = None
    if grads.log_theta is not None and isinstance(p.pieces, nm.NBPieces):
        d_theta = -grad * nm.saturate(grads.log_theta / p.pieces.theta)
    if grads.zi_logits is not None:
        d_zi = -grad * grads.zi_logits
    return d_mu, d_theta, d_zi
