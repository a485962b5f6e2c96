"""Stateless operations on tensors: check, broadcast, choose a backend.

Counts ``x`` are a dense (N, G) tensor of any real dtype or a ``torch.sparse_csr`` one without
duplicate entries. Everything is computed in float32, or in float64 where a parameter is float64;
half-precision parameters are accepted and their gradients come back in their own dtype. Second
derivatives are not available and asking for them raises.

NaN in an input gives NaN in every result that depends on it, and in no other cell's. The
likelihoods, the divergences and the sampling give finite results and gradients on any finite
float32 input: log theta is clamped to [-60, 60], log mu to at most 60 (it has no lower bound),
counts and zero-inflation logits to at most 1e30, log variances to at most 80, variances that are
divided by to [1e-30, 1e36], and what still lies beyond 1e30 comes out as 1e30 with its sign: the
likelihood and the divergence of a cell, and derivatives. An infinite parameter counts as the bound
it lies beyond, where there is one; an infinite count gives NaN, a negative one counts as zero. What
is not defined is NaN: a softmax with an infinite logit, a negative mean, theta or variance. Linear
layers are plain sums of products and overflow as torch's do.
"""

from __future__ import annotations

from .dispatch import use_backend
from .heads import nb_heads_nll, poisson_heads_nll, zinb_heads_nll
from .latent import kl_normal, reparameterize, sample_and_kl
from .likelihood import nb_log_prob, nb_nll, poisson_log_prob, poisson_nll, zinb_log_prob, zinb_nll
from .linear import count_linear, log_library_size

__all__ = [
    "count_linear",
    "kl_normal",
    "log_library_size",
    "nb_heads_nll",
    "nb_log_prob",
    "nb_nll",
    "poisson_heads_nll",
    "poisson_log_prob",
    "poisson_nll",
    "reparameterize",
    "sample_and_kl",
    "use_backend",
    "zinb_heads_nll",
    "zinb_log_prob",
    "zinb_nll",
]
