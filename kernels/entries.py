"""log p and its gradients for a matrix of entries, in torch.

Every entry is first treated as a zero count, which needs no gamma function; the nonzero ones
(5-10 % of a real matrix) are then computed apart and written over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from . import numerics as nm


def same_dtype(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast to the widest dtype among them, at least float32."""
    dtype = torch.float32
    for t in tensors:
        if t is not None:
            dtype = torch.promote_types(dtype, t.dtype)
    return tuple(None if t is None else t.to(dtype) for t in tensors)


class Counts(NamedTuple):
    """One minibatch of counts: `dense`, or `crow`, `col` and `values` of a CSR matrix."""

    shape: tuple[int, int]
    dense: Tensor | None
    crow: Tensor | None = None
    col: Tensor | None = None
    values: Tensor | None = None

    def positions(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and count of each nonzero entry; stored zeros are left out."""
        if self.dense is not None:
            row, col = (~(self.dense <= 0)).nonzero(as_tuple=True)  # NaN counts as nonzero
            return row, col, self.dense[row, col].to(dtype)
        row, col, x = *self.stored(), self.values
        assert x is not None
        stored = ~(x <= 0)
        if not bool(stored.all()):
            row, col, x = row[stored], col[stored], x[stored]
        return row, col, x.to(dtype)

    def stored(self) -> tuple[Tensor, Tensor]:
        """Row and column of each stored entry of a CSR matrix."""
        assert self.crow is not None
        assert self.col is not None
        rows = torch.arange(self.shape[0], device=self.col.device)
        row = torch.repeat_interleave(rows, self.crow.diff(), output_size=self.col.numel())
        return row, self.col.long()

    def to_dense(self, dtype: torch.dtype) -> Tensor:
        """The counts as an (N, G) matrix."""
        if self.dense is not None:
            return self.dense.to(dtype)
        assert self.values is not None
        out = torch.zeros(self.shape, dtype=dtype, device=self.values.device)
        return out.index_put_(self.stored(), self.values.to(dtype), accumulate=True)


Pieces = TypeVar("Pieces", nm.PoissonPieces, nm.NBPieces)


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
