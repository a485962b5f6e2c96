"""The fast way through ``VAE.forward``: from decoder logits straight to the loss of each cell.

The cells by genes matrices of the rate and of the dispersion are never made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import functional
from ..nn import VARIANCE_FLOOR, Encoder, identity
from .inputs import prior
from .parts import (
    as_column,
    decoder_batch,
    encoder_covariates,
    encoder_input,
    log_dispersion,
)

if TYPE_CHECKING:
    from ..vae import VAE


def forward(
    model: VAE, x: Tensor, local_l_mean: Any, local_l_var: Any, batch_index: Any, y: Any
) -> tuple[Tensor, Tensor, float]:
    """What ``VAE.forward`` returns, for checked counts and a model without replaced parts."""
    x_ = encoder_input(model, x)
    y = as_column(y)
    told = encoder_covariates(model, batch_index, x)
    z, kl_z = _encode(model.z_encoder, x_, *told, y)
    if model.use_observed_lib_size:
        library, kl_l = functional.log_library_size(x).to(z.dtype), None
    else:
        library, kl_l = _encode(model.l_encoder, x_, *told, local_l=(local_l_mean, local_l_var))

    nll = negative_log_likelihood(model, x, z.to(x_.dtype), library, batch_index, y)
    return (nll if kl_l is None else nll + kl_l), kl_z, 0.0


def negative_log_likelihood(
    model: VAE, x: Tensor, z: Tensor, library: Tensor, batch_index: Any, y: Any
) -> Tensor:
    """-log p(x | z, library) of each cell (N,), at a z (N, L) and a log library size (N, 1)."""
    batch = decoder_batch(model, batch_index, None, x)
    return likelihood_of(model, x, decoded(model, z, batch, y), library, batch, y)


def decoded(model: VAE, z: Tensor, batch: Any, y: Any) -> tuple[Tensor, Tensor | None, Any]:
    """Scale logits, log-dispersion head and zero-inflation logits, as far as they are needed."""
    likelihood = model.reconstruction_loss
    dispersion = model.dispersion if likelihood != "poisson" else "gene"
    parts: tuple[Tensor, Tensor | None, Any] = model.decoder.logits(
        dispersion, z, batch, y, zero_inflation=likelihood == "zinb"
    )
    return parts


def likelihood_of(
    model: VAE,
    x: Tensor,
    parts: tuple[Tensor, Tensor | None, Any],
    library: Tensor,
    batch: Any,
    y: Any,
) -> Tensor:
    """-log p(x | parts, library) of each cell (N,), for what `decoded` gave."""
    scale_logits, head, zi_logits = parts
    likelihood = model.reconstruction_loss
    if likelihood != "poisson" or model.dispersion != "gene-cell":
        # also for poisson, so that missing covariates are refused alike
        log_theta, codes = log_dispersion(model, head, batch, y, x)
    if likelihood == "poisson":
        return functional.poisson_nll(x, scale_logits, library)
    if likelihood == "nb":
        return functional.nb_nll(x, scale_logits, library, log_theta, theta_index=codes)
    assert zi_logits is not None
    return functional.zinb_nll(x, scale_logits, library, log_theta, zi_logits, theta_index=codes)


def _encode(
    encoder: Encoder, x: Tensor, *cat_list: Any, local_l: tuple[Any, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """A latent sample (N, L) and the KL divergence of each cell (N,) from its prior."""
    q_m, q_log_v = encoder.moments(x, *cat_list)
    p_m, p_v = None, None
    if local_l is not None:
        p_m, p_v = prior(local_l[0], "local_l_mean", q_m), prior(local_l[1], "local_l_var", q_m)
    sample, _, _, kl = functional.sample_and_kl(
        q_m,
        q_log_v,
        p_m,
        p_v,
        var_eps=VARIANCE_FLOOR,
        latent_distribution="normal" if encoder.z_transformation is identity else "ln",
    )
    return sample, kl
