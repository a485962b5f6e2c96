"""scvi-tools' modules with fastvae underneath: same parameters, same answers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from scvi import REGISTRY_KEYS
from scvi.data._constants import ADATA_MINIFY_TYPE
from scvi.module import LDVAE as TheirLDVAE
from scvi.module import SCANVAE as TheirSCANVAE
from scvi.module import VAE as TheirVAE
from scvi.module._constants import MODULE_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn
from torch.distributions import Normal

from ... import functional
from .._counts_from_logits import LazyCounts
from ._networks import codes_of, decode, decodes_plainly, encode, encodes_plainly
from ._posterior import LIKELIHOODS, Posterior, StandardNormal, kl_latent, kl_library

NO_COUNTS = 1e-8
"""Replaces a total count or size factor of 0, so that its logarithm stays finite."""

Outputs = dict[str, Any]

if TYPE_CHECKING:
    _Behind = Any
else:
    _Behind = nn.Module


def _dense(x: Tensor) -> Tensor:
    return x if x.layout == torch.strided else x.to_dense()


def log_size_factor(logarithm: Tensor) -> Tensor:
    """Return the logarithms of size factors as they are used: a factor of 0 has -inf."""
    return logarithm.clamp_min(math.log(NO_COUNTS))


class Fused(_Behind):
    """Mixin for ``scvi.module.VAE`` and its subclasses: computes with fastvae's operations.

    It stands before that class in the list of bases. Parameters, buffers and every method that is
    not here are those of that class. Its methods also compute what fastvae has no operation for:
    the normal likelihood, encoders with another variance activation, networks that were changed.
    """

    @property
    def fused_likelihood(self) -> bool:
        """Whether the likelihood is computed from the decoder's logits."""
        return self.gene_likelihood in LIKELIHOODS and decodes_plainly(self.decoder)

    @property
    def fused_encoders(self) -> bool:
        """Whether the encoders take counts, dense or CSR, as they are."""
        encoders = [self.z_encoder, *([] if self.use_observed_lib_size else [self.l_encoder])]
        return all(map(encodes_plainly, encoders))

    def why_dense(self) -> str | None:
        """Return why minibatches must have dense counts, or None if they may be CSR."""
        if self.gene_likelihood not in LIKELIHOODS:
            return f"fastvae has no {self.gene_likelihood!r} likelihood"
        if self.minified_data_type is not None:
            return "the data is minified"
        if not self.fused_encoders:
            return "an encoder has a variance activation of its own, or was changed"
        if not self.fused_likelihood:
            return "the decoder was changed"
        return None

    @auto_move_data
    def _regular_inference(
        self,
        x: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        n_samples: int = 1,
    ) -> Outputs:
        """Encode; `x` (N, G) is dense or CSR."""
        if not self.fused_encoders:
            return super()._regular_inference(
                _dense(x), batch_index, cont_covs, cat_covs, n_samples=n_samples
            )
        extra, cats = [], [codes_of(batch_index, "batch_index")]
        embedded = self.batch_representation == "embedding"
        if self.encode_covariates:
            if cont_covs is not None:
                extra.append(cont_covs)
            if embedded:
                extra.append(self.compute_embedding(REGISTRY_KEYS.BATCH_KEY, batch_index))
                cats = []
            if cat_covs is not None:
                cats += [codes_of(one, "cat_covs") for one in torch.split(cat_covs, 1, dim=1)]
        encoder_input = x, self.log_variational, extra, cats
        qz, z = encode(self.z_encoder, *encoder_input)
        ql: Posterior | None = None
        if self.use_observed_lib_size:
            library = functional.log_library_size(x, floor=NO_COUNTS).to(z.dtype)
        else:
            ql, library = encode(self.l_encoder, *encoder_input)
        if n_samples > 1:
            z = self.z_encoder.z_transformation(qz.sample((n_samples,)))
            library = library.expand(n_samples, -1, -1) if ql is None else ql.sample((n_samples,))
        return {
            MODULE_KEYS.Z_KEY: z,
            MODULE_KEYS.QZ_KEY: qz,
            MODULE_KEYS.QL_KEY: ql,
            MODULE_KEYS.LIBRARY_KEY: library,
        }

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        library: Tensor,
        batch_index: Tensor,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        y: Tensor | None = None,
        transform_batch: Any = None,
    ) -> Outputs:
        """Decode to a distribution that keeps its logits until a parameter is read."""
        if not self.fused_likelihood:
            return super().generative(
                z, library, batch_index, cont_covs, cat_covs, size_factor, y, transform_batch
            )
        if transform_batch is not None:
            batch_index = torch.ones_like(batch_index) * transform_batch
        parts, cats = [z], []
        if cont_covs is not None:
            parts.append(cont_covs)
        if self.batch_representation == "embedding":
            parts.append(self.compute_embedding(REGISTRY_KEYS.BATCH_KEY, batch_index))
        else:
            cats.append(codes_of(batch_index, "batch_index"))
        if cat_covs is not None:
            cats += [codes_of(one, "cat_covs") for one in torch.split(cat_covs, 1, dim=1)]
        if len(parts) > 1:
            z_input = torch.cat([part.expand(*z.shape[:-1], -1) for part in parts], dim=-1)
        else:
            z_input = z
        factor = size_factor if self.use_size_factor_key else library
        if factor is None:
            raise ValueError("the model was set up with a size_factor_key; size_factor is missing")
        if self.use_size_factor_key:
            factor = log_size_factor(factor)
        logits = decode(
            self.decoder,
            self.dispersion,
            z_input,
            factor,
            cats if y is None else [*cats, codes_of(y, "y")],
            zero_inflation=self.gene_likelihood == "zinb",
        )
        if self.gene_likelihood != "poisson":
            logits = logits._replace(**self._log_theta(logits.log_theta, batch_index, y))
        pl = None
        if not self.use_observed_lib_size:
            mean, variance = self._compute_local_library_params(batch_index)
            pl = Normal(mean, variance.sqrt(), validate_args=False)
        return {
            MODULE_KEYS.PX_KEY: LIKELIHOODS[self.gene_likelihood].from_logits(logits),
            MODULE_KEYS.PL_KEY: pl,
            MODULE_KEYS.PZ_KEY: StandardNormal.like(z),
        }

    def _log_theta(
        self, head: Tensor | nn.Linear | None, batch_index: Tensor, y: Tensor | None
    ) -> Outputs:
        """Return the log dispersion, and for each cell its row of it."""
        if self.dispersion == "gene-cell":
            if head is None:
                raise ValueError(
                    "dispersion='gene-cell' needs a decoder with a dispersion head, and "
                    f"{type(self.decoder).__name__} has none; choose another dispersion"
                )
            return {"log_theta": head}
        if self.dispersion == "gene":
            return {"log_theta": self.px_r}
        codes = batch_index if self.dispersion == "gene-batch" else y
        if codes is None:
            raise ValueError("dispersion='gene-label' needs y, the labels of the cells")
        return {"log_theta": self.px_r.t(), "theta_index": codes.reshape(-1).long()}

    def _compute_local_library_params(self, batch_index: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the log library size in each cell's batch, (N, 1) both."""
        codes = batch_index.reshape(-1).long()
        return self.library_log_means.t()[codes], self.library_log_vars.t()[codes]

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: Outputs,
        generative_outputs: Outputs,
        kl_weight: Tensor | float = 1.0,
    ) -> LossOutput:
        """Negative ELBO of a minibatch, with `kl_weight` on the KL divergence of z."""
        if self.minified_data_type == ADATA_MINIFY_TYPE.LATENT_POSTERIOR:  # refused by scvi-tools
            return super().loss(tensors, inference_outputs, generative_outputs, kl_weight)
        px = generative_outputs[MODULE_KEYS.PX_KEY]
        x = tensors[REGISTRY_KEYS.X_KEY]
        reconstruction = _reconstruction(px, x)
        kl_z = kl_latent(
            inference_outputs[MODULE_KEYS.QZ_KEY], generative_outputs[MODULE_KEYS.PZ_KEY]
        )
        weighted = reconstruction + kl_weight * kl_z
        if self.use_observed_lib_size:
            kl_l = torch.zeros_like(kl_z)
        else:
            kl_l = kl_library(
                inference_outputs[MODULE_KEYS.QL_KEY], generative_outputs[MODULE_KEYS.PL_KEY]
            )
            weighted = weighted + kl_l
        extra = {}
        if getattr(self, "extra_payload_autotune", False):
            extra = {
                "z": inference_outputs[MODULE_KEYS.Z_KEY],
                "batch": tensors[REGISTRY_KEYS.BATCH_KEY],
                "labels": tensors[REGISTRY_KEYS.LABELS_KEY],
            }
        return LossOutput(
            loss=weighted.mean(),
            reconstruction_loss=reconstruction,
            kl_local={MODULE_KEYS.KL_L_KEY: kl_l, MODULE_KEYS.KL_Z_KEY: kl_z},
            extra_metrics=extra,
        )


def _reconstruction(px: Any, x: Tensor) -> Tensor:
    if isinstance(px, LazyCounts):
        return px.nll(x)
    return -px.log_prob(_dense(x)).sum(-1)


class VAE(Fused, TheirVAE):
    """``scvi.module.VAE``, fast."""


class LDVAE(Fused, TheirLDVAE):
    """``scvi.module.LDVAE``, fast."""


class _PerCell:
    """A distribution of which only the sum of ``log_prob`` over genes is needed."""

    def __init__(self, px: Any) -> None:
        self._px = px

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of each cell (N, 1)."""
        return -_reconstruction(self._px, value).unsqueeze(-1)


class SCANVAE(Fused, TheirSCANVAE):
    """``scvi.module.SCANVAE`` with fastvae's encoder, likelihood and sampling."""

    @auto_move_data
    def classify(
        self,
        x: Tensor,
        batch_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        use_posterior_mean: bool = True,
    ) -> Tensor:
        """Return the scores of the labels (N, K) for counts `x` (N, G), dense or CSR."""
        if x.requires_grad or not self.fused_encoders:  # attributions take gradients by the counts
            return super().classify(_dense(x), batch_index, cont_covs, cat_covs, use_posterior_mean)
        extra, cats = [], [codes_of(batch_index, "batch_index")]
        if self.encode_covariates:
            if cont_covs is not None:
                extra.append(cont_covs)
            if cat_covs is not None:
                cats += [codes_of(one, "cat_covs") for one in torch.split(cat_covs, 1, dim=1)]
        qz, z = encode(self.z_encoder, x, self.log_variational, extra, cats)
        return self.classify_helper(qz.loc if use_posterior_mean else z)

    def loss(  # type: ignore[override]
        self,
        tensors: dict[str, Tensor],
        inference_outputs: Outputs,
        generative_ouputs: Outputs,
        kl_weight: float = 1.0,
        labelled_tensors: dict[str, Tensor] | None = None,
        classification_ratio: float | None = None,
    ) -> LossOutput:
        """Semi-supervised loss of a minibatch; scvi-tools spells the third argument so."""
        px = _PerCell(generative_ouputs[MODULE_KEYS.PX_KEY])
        return TheirSCANVAE.loss(
            self,
            tensors,
            inference_outputs,
            {**generative_ouputs, MODULE_KEYS.PX_KEY: px},
            kl_weight,
            labelled_tensors,
            classification_ratio,
        )
