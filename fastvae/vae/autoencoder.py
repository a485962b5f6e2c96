"""What the functions of this folder read of a VAE."""

from __future__ import annotations

from typing import Protocol

from ..nn import DecoderSCVI, Encoder, LinearDecoderSCVI


class Autoencoder(Protocol):
    """The networks of a `VAE`, and the options that it was made with."""

    z_encoder: Encoder
    l_encoder: Encoder
    decoder: DecoderSCVI | LinearDecoderSCVI
    dispersion: str
    reconstruction_loss: str
    n_batch: int
    n_labels: int
    use_observed_lib_size: bool
    log_variational: bool
    encode_covariates: bool
    n_cats_per_cov: tuple[int, ...]
    n_continuous_cov: int
    use_size_factor_key: bool
    check_counts: bool | None
    _n_input: int
