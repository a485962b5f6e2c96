"""What ``VAE`` does with a minibatch: counts to posterior, latent sample to logits, logits to loss.

The fused `forward` never makes the cells by genes matrices of the rate and of the dispersion.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .. import functional
from .._covariates import NO_COVARIATES, CellCovariates, Codes, Covariates
from .._torch import csr_of
from ..errors import InputError, one_of
from ..functional.gather import CountLogs
from ..functional.heads import Head, heads_nll_of
from ..functional.likelihood import nll_of, softplus_as_softmax
from ..nn import VARIANCE_FLOOR, DecoderSCVI, Encoder, has_softplus, identity
from .arguments import check_matrix, prior, refuse_non_counts
from .autoencoder import Autoencoder
from .stock import categories, plain_heads, stock_encoder, takes_one_hot, takes_sparse

DISPERSIONS = ("gene", "gene-batch", "gene-label", "gene-cell")
LIKELIHOODS = ("zinb", "nb", "poisson")
LATENTS = ("normal", "ln")


def check_input(model: Autoencoder, x: Tensor, counts: bool) -> None:
    """Check the shape of `x` and, where `counts` are expected, its values."""
    check_matrix(x, model._n_input if stock_encoder(model.z_encoder) else None)
    if counts or model.check_counts:
        refuse_non_counts(x, model.check_counts)


def encoder_input(model: Autoencoder, x: Tensor, logs: CountLogs | None = None) -> Tensor:
    """What the encoders see: log(1 + x) or x, in their dtype; CSR stays CSR where they allow.

    `logs` has log(1 + x) where it is known already, in the layout of `x`.
    """
    sparse = x.layout == torch.sparse_csr
    if sparse and not (takes_sparse(model.z_encoder) and takes_sparse(model.l_encoder)):
        x, sparse = x.to_dense(), False
    weight = next(model.z_encoder.parameters(), None)
    dtype = torch.get_default_dtype() if weight is None else weight.dtype
    if logs is not None and model.log_variational:
        values = logs.log1p.to(dtype)
    else:
        wide = torch.promote_types(x.dtype, dtype)  # counts lose nothing before the logarithm
        values = (x.values() if sparse else x).to(wide)
        values = (torch.log1p(values) if model.log_variational else values).to(dtype)
    if not sparse:
        return values
    return csr_of(x.crow_indices(), x.col_indices(), values, (x.shape[0], x.shape[1]))


def covariates_of(
    model: Autoencoder,
    x: Tensor,
    batch_index: Any,
    y: Any,
    more: CellCovariates = NO_COVARIATES,
) -> Covariates:
    """Covariates of the cells of `x`: parsed here, checked when they are first read."""
    return Covariates.of(
        x,
        batch_index,
        y,
        more,
        n_categorical=len(model.n_cats_per_cov),
        n_continuous=model.n_continuous_cov,
        force=model.check_counts,
    )


def told(network: Any, k: int, codes: Codes, name: str | None = None) -> Any:
    """What a network is told as covariate `k`: as given, if it is not one of ours or takes none.

    Our own layers take one-hot rows as they are, so that nothing is checked or made again.
    """
    n_cat = categories(network, k)
    if n_cat < 2:
        return codes.given
    if takes_one_hot(network):
        return codes.one_hot(n_cat, name=name)
    return codes.column(n_cat, name)


def encoder_categories(model: Autoencoder, encoder: Any, covariates: Covariates) -> tuple[Any, ...]:
    """What an encoder is told before the label: nothing, or batch and categorical covariates."""
    if not model.encode_covariates:
        return ()
    found: list[Any] = []
    numbers = model.n_batch, *model.n_cats_per_cov
    for k, (codes, n_cat) in enumerate(zip(covariates.codes, numbers, strict=True)):
        column = None if n_cat < 2 else codes.column(n_cat)
        found.append(told(encoder, k, codes) if categories(encoder, k) > 1 else column)
    return tuple(found)


def encoder_covariates(model: Autoencoder, covariates: Covariates) -> tuple[Any, ...]:
    """What the encoder of z is told: categories where the model says so, and the label."""
    before = encoder_categories(model, model.z_encoder, covariates)
    k = len(before)
    return *before, told(model.z_encoder, k, covariates.labels, f"covariate {k}")


def encoder_columns(model: Autoencoder, covariates: Covariates, like: Tensor) -> dict[str, Tensor]:
    """Keywords with the columns that follow the genes in encoders, in the dtype of `like`."""
    if not (model.encode_covariates and model.n_continuous_cov):
        return {}
    return {"cont": covariates.continuous.columns(like.dtype)}


def decoder_covariates(model: Autoencoder, covariates: Covariates) -> tuple[Any, ...]:
    """What the decoder is told: batch, categorical covariates and label."""
    k = len(covariates.codes)
    return (
        *(told(model.decoder, i, codes) for i, codes in enumerate(covariates.codes)),
        told(model.decoder, k, covariates.labels, f"covariate {k}"),
    )


def decoder_input(model: Autoencoder, z: Tensor, covariates: Covariates) -> Tensor:
    """What the decoder decodes: z (..., N, L), followed by continuous covariates."""
    if not model.n_continuous_cov:
        return z
    columns = covariates.continuous.columns(z.dtype)
    return torch.cat([z, columns.expand(*z.shape[:-1], -1)], dim=-1)


def observed_log_library(
    model: Autoencoder, x: Tensor, covariates: Covariates, logs: CountLogs | None = None
) -> Tensor:
    """Log of what frequencies are multiplied by (N, 1), where that is not learned.

    `logs` has the logarithms of the totals where they are known already.
    """
    if model.use_size_factor_key:
        return covariates.size_factor.log(torch.get_default_dtype())
    return functional.log_library_size(x) if logs is None else logs.log_library


def log_dispersion(
    model: Autoencoder, head: Tensor | None, covariates: Covariates
) -> tuple[Tensor, Tensor | None]:
    """log theta as (G,) or (N, G) and None, or as a (K, G) table and the row of each cell."""
    one_of("dispersion", model.dispersion, DISPERSIONS)
    if model.dispersion == "gene-cell":
        if head is None:
            raise InputError(
                "dispersion='gene-cell' needs a decoder with a dispersion head, which "
                f"{type(model.decoder).__name__} does not have; choose another dispersion."
            )
        return head, None
    table = getattr(model, "px_r", None)
    if model.dispersion == "gene" and table is not None:
        return table, None
    by_batch = model.dispersion == "gene-batch"
    option, codes = ("n_batch", covariates.batch) if by_batch else ("n_labels", covariates.labels)
    n_cat = getattr(model, option)
    if n_cat < 1 or table is None or table.dim() != 2 or table.shape[1] != n_cat:
        shape = None if table is None else tuple(table.shape)
        raise InputError(
            f"dispersion={model.dispersion!r} does not fit px_r of shape {shape} and "
            f"{option}={n_cat}; build the model with this dispersion and {option} >= 1, or "
            "choose dispersion='gene'."
        )
    if codes.given is None and by_batch and n_cat == 1:
        return table.t(), torch.zeros(codes.n_cells, dtype=torch.int64, device=codes.device)
    return table.t(), codes.index(n_cat)


def draws(mean: Tensor, variance: Tensor, n_samples: int) -> Tensor:
    """`n_samples` draws of N(mean, variance) without gradient, stacked in front."""
    shape = (int(n_samples), *mean.shape)
    with torch.no_grad():
        return functional.reparameterize(mean.expand(shape), variance.expand(shape))


def forward(
    model: Autoencoder,
    x: Tensor,
    local_l_mean: Any,
    local_l_var: Any,
    batch_index: Any,
    y: Any,
    logs: CountLogs | None = None,
    more: CellCovariates = NO_COVARIATES,
) -> tuple[Tensor, Tensor, float]:
    """What ``VAE.forward`` returns, for checked counts and a model without replaced parts."""
    x_ = encoder_input(model, x, logs)
    covariates = covariates_of(model, x, batch_index, y, more)
    columns = encoder_columns(model, covariates, x_)
    z, kl_z = _encode(model.z_encoder, x_, encoder_covariates(model, covariates), columns)
    local_l = local_l_mean, local_l_var
    library, kl_l = drawn_library(model, x, x_, covariates, columns, local_l, logs)
    nll = negative_log_likelihood(model, x, z.to(x_.dtype), library.to(z.dtype), covariates)
    return (nll if kl_l is None else nll + kl_l), kl_z, 0.0


def drawn_library(
    model: Autoencoder,
    x: Tensor,
    x_: Tensor,
    covariates: Covariates,
    columns: dict[str, Tensor],
    local_l: tuple[Any, Any],
    logs: CountLogs | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The log library size (N, 1), and the KL divergence (N,) of its posterior where it is learned.

    Parameters
    ----------
    x, x_
        Counts, and what the encoders see of them.
    columns
        What `encoder_columns` gives.
    local_l
        Mean and variance of the prior of each cell.
    logs
        The logarithms of the totals where they are known already.
    """
    if model.use_observed_lib_size:
        return observed_log_library(model, x, covariates, logs), None
    told = encoder_categories(model, model.l_encoder, covariates)
    return _encode(model.l_encoder, x_, told, columns, local_l)


def negative_log_likelihood(
    model: Autoencoder, x: Tensor, z: Tensor, library: Tensor, covariates: Covariates
) -> Tensor:
    """-log p(x | z, library) of each cell (N,), at a z (N, L) and a log library size (N, 1)."""
    likelihood = model.reconstruction_loss
    per_cell = model.dispersion == "gene-cell" and likelihood != "poisson"
    if not plain_heads(model.decoder, likelihood == "zinb", per_cell):
        return likelihood_of(model, x, decoder_logits(model, z, covariates), library, covariates)
    decoder = cast(DecoderSCVI, model.decoder)
    z = decoder_input(model, z, covariates)
    hidden = decoder.px_decoder(z, *decoder_covariates(model, covariates))
    log_theta: Any = None
    codes = None
    if per_cell:
        log_theta = head_of(decoder.px_r_decoder)
    elif model.dispersion != "gene-cell":
        # also for poisson, so that missing covariates are refused alike
        log_theta, codes = log_dispersion(model, None, covariates)
    scale, zi = head_of(decoder.px_scale_decoder[0]), head_of(decoder.px_dropout_decoder)
    return heads_nll_of(
        likelihood, x, hidden, scale, library, log_theta, zi, theta_index=codes, in_range=True
    )


def head_of(layer: Any) -> Head:
    """Weight and bias of a linear layer."""
    return layer.weight, layer.bias


def decoder_logits(
    model: Autoencoder, z: Tensor, covariates: Covariates
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Scale logits, log-dispersion head and zero-inflation logits, as far as they are needed."""
    likelihood = model.reconstruction_loss
    return model.decoder.logits(
        model.dispersion if likelihood != "poisson" else "gene",
        decoder_input(model, z, covariates),
        *decoder_covariates(model, covariates),
        zero_inflation=likelihood == "zinb",
    )


def likelihood_of(
    model: Autoencoder,
    x: Tensor,
    parts: tuple[Tensor, Tensor | None, Tensor | None],
    library: Tensor,
    covariates: Covariates,
) -> Tensor:
    """-log p(x | parts, library) of each cell (N,), for what `decoder_logits` gave."""
    scale_logits, head, zi_logits = parts
    likelihood = model.reconstruction_loss
    log_theta = codes = None
    if likelihood != "poisson" or model.dispersion != "gene-cell":
        # also for poisson, so that missing covariates are refused alike
        log_theta, codes = log_dispersion(model, head, covariates)
    if has_softplus(model.decoder):
        scale_logits, library = softplus_as_softmax(scale_logits, library)
    parameters = scale_logits, library, log_theta, zi_logits
    return nll_of(likelihood, x, *parameters, theta_index=codes, in_range=True)


def _encode(
    encoder: Encoder,
    x: Tensor,
    covariates: tuple[Any, ...],
    columns: dict[str, Tensor],
    local_l: tuple[Any, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """A latent sample (N, L) and the KL divergence of each cell (N,) from its prior."""
    q_m, q_log_v = encoder.moments(x, *covariates, **columns)
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
