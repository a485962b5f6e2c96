"""What ``VAE`` does with a minibatch: counts to posterior, latent sample to logits, logits to loss.

The fused `forward` never makes the cells by genes matrices of the rate and of the dispersion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import functional
from .._covariates import category, codes_of
from .._torch import csr_of
from ..errors import InputError, one_of
from ..functional.likelihood import nll_of
from ..nn import VARIANCE_FLOOR, Encoder, identity
from .arguments import check_counts, check_matrix, prior
from .stock import decoder_batches, stock_encoder, takes_sparse

if TYPE_CHECKING:
    from .vae import VAE


DISPERSIONS = ("gene", "gene-batch", "gene-label", "gene-cell")
LIKELIHOODS = ("zinb", "nb", "poisson")
LATENTS = ("normal", "ln")


def check_input(model: VAE, x: Tensor, counts: bool) -> None:
    """Check the shape of `x` and, where `counts` are expected, its values."""
    check_matrix(x, model._n_input if stock_encoder(model.z_encoder) else None)
    if counts or model.check_counts:
        check_counts(x, model.check_counts)


def encoder_input(model: VAE, x: Tensor) -> Tensor:
    """What the encoders see: log(1 + x) or x, in their dtype; CSR stays CSR where they allow."""
    sparse = x.layout == torch.sparse_csr
    if sparse and not (takes_sparse(model.z_encoder) and takes_sparse(model.l_encoder)):
        x, sparse = x.to_dense(), False
    weight = next(model.z_encoder.parameters(), None)
    dtype = torch.get_default_dtype() if weight is None else weight.dtype
    wide = torch.promote_types(x.dtype, dtype)  # counts lose nothing before the logarithm
    values = (x.values() if sparse else x).to(wide)
    values = (torch.log1p(values) if model.log_variational else values).to(dtype)
    if not sparse:
        return values
    return csr_of(x.crow_indices(), x.col_indices(), values, (x.shape[0], x.shape[1]))


def as_column(value: Any) -> Any:
    """(N,) tensors as (N, 1); anything else untouched."""
    return value.unsqueeze(1) if isinstance(value, Tensor) and value.dim() == 1 else value


def decoder_batch(model: VAE, batch_index: Any, transform_batch: Any, x: Tensor) -> Any:
    """The batch the decoder is told: codes (N, 1), one-hot (N, K), or as given if it takes none."""
    n_cat, name = decoder_batches(model.decoder), "batch_index"
    if transform_batch is not None:
        name = "transform_batch"
        try:
            batch_index = torch.as_tensor(transform_batch, device=x.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"transform_batch={transform_batch!r} is not a batch code; pass an int, or one "
                "code per cell."
            ) from error
        if batch_index.numel() == 1:
            batch_index = batch_index.reshape(1, 1).expand(x.shape[0], 1)
    if n_cat > 1:
        return category(
            batch_index, n_cat, x.shape[0], name, device=x.device, force=model.check_counts
        )
    return as_column(batch_index)


def encoder_covariates(model: VAE, batch_index: Any, x: Tensor) -> tuple[Any, ...]:
    """What the encoders are told before the label: nothing, or the batch of each cell."""
    if not model.encode_covariates:
        return ()
    if model.n_batch < 2:
        return (None,)
    return (
        category(
            batch_index,
            model.n_batch,
            x.shape[0],
            "batch_index",
            device=x.device,
            force=model.check_counts,
        ),
    )


def log_dispersion(
    model: VAE, head: Tensor | None, batch: Any, y: Any, x: Tensor
) -> tuple[Tensor, Tensor | None]:
    """log theta as (G,) or (N, G) and None, or as a (K, G) table and the row of each cell."""
    one_of("dispersion", model.dispersion, DISPERSIONS)
    if model.dispersion == "gene-cell":
        if head is None:
            raise InputError(
                "dispersion='gene-cell' needs a decoder with a dispersion head, which "
                f"{type(model.decoder).__name__} has not; choose another dispersion."
            )
        return head, None
    table = getattr(model, "px_r", None)
    if model.dispersion == "gene" and table is not None:
        return table, None
    by_batch = model.dispersion == "gene-batch"
    name, option, rows = ("batch_index", "n_batch", batch) if by_batch else ("y", "n_labels", y)
    n_cat = getattr(model, option)
    if n_cat < 1 or table is None or table.dim() != 2 or table.shape[1] != n_cat:
        shape = None if table is None else tuple(table.shape)
        raise InputError(
            f"dispersion={model.dispersion!r} does not fit px_r of shape {shape} and "
            f"{option}={n_cat}; build the model with this dispersion and {option} >= 1, or "
            "choose dispersion='gene'."
        )
    if rows is None and by_batch and n_cat == 1:
        rows = torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device)
    rows = category(rows, n_cat, x.shape[0], name, device=x.device, force=model.check_counts)
    return table.t(), codes_of(rows, name)


def draws(mean: Tensor, variance: Tensor, n_samples: int) -> Tensor:
    """`n_samples` draws of N(mean, variance) without gradient, stacked in front."""
    shape = (int(n_samples), *mean.shape)
    with torch.no_grad():
        return functional.reparameterize(mean.expand(shape), variance.expand(shape))


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
    log_theta = codes = None
    if likelihood != "poisson" or model.dispersion != "gene-cell":
        # also for poisson, so that missing covariates are refused alike
        log_theta, codes = log_dispersion(model, head, batch, y, x)
    return nll_of(likelihood, x, scale_logits, library, log_theta, zi_logits, theta_index=codes)


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
