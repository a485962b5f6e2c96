"""The methods of ``VAE`` that draw from the posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from .. import functional
from .parts import as_column, check_input, draws, encoder_covariates, encoder_input

if TYPE_CHECKING:
    from ..vae import VAE


class SamplingMethods(nn.Module):
    """What ``VAE`` offers on top of its encoders and ``inference``."""

    z_encoder: Any
    l_encoder: Any
    latent_distribution: str
    use_observed_lib_size: bool
    encode_covariates: bool
    inference: Any
    _expects_counts: Any

    def get_latents(
        self, x: Tensor, y: Tensor | None = None, *, batch_index: Tensor | None = None
    ) -> list[Tensor]:
        """Return :meth:`sample_from_posterior_z` as the only element of a list."""
        # positional alone where that is all there is: an override need not know batch_index
        more: dict[str, Any] = {} if batch_index is None else {"batch_index": batch_index}
        return [self.sample_from_posterior_z(x, y, **more)]

    def sample_from_posterior_z(
        self,
        x: Tensor,
        y: Tensor | None = None,
        give_mean: bool = False,
        n_samples: int = 5000,
        *,
        batch_index: Tensor | None = None,
    ) -> Tensor:
        """Draw z, or give its posterior mean.

        Parameters
        ----------
        x
            Counts (N, G).
        y
            Labels, handed to the encoder; this class's own encoder ignores them.
        give_mean
            Return the mean. For ``latent_distribution="ln"`` it is the average of the softmax of
            `n_samples` draws, random and without gradient.
        n_samples
            Number of those draws.
        batch_index
            Batch codes as in :meth:`inference`, needed with ``encode_covariates``.

        Returns
        -------
        Tensor
            (N, L).

        Raises
        ------
        InputError
            `x` has the wrong shape or is not made of counts.
        """
        model = cast("VAE", self)
        check_input(model, x, self._expects_counts())
        told = encoder_covariates(model, batch_index, x)
        qz_m, qz_v, z = self.z_encoder(encoder_input(model, x), *told, as_column(y))
        if not give_mean:
            return z
        if self.latent_distribution != "ln":
            return qz_m
        return self.z_encoder.z_transformation(draws(qz_m, qz_v, n_samples)).mean(dim=0)

    def sample_from_posterior_l(self, x: Tensor, *, batch_index: Tensor | None = None) -> Tensor:
        """Draw the log library size (N, 1); the observed one where that is used.

        `x` and `batch_index` are those of :meth:`sample_from_posterior_z`.
        """
        model = cast("VAE", self)
        check_input(model, x, self._expects_counts())
        if self.use_observed_lib_size:
            return functional.log_library_size(x)
        told = encoder_covariates(model, batch_index, x)
        return self.l_encoder(encoder_input(model, x), *told)[2]

    def get_sample_scale(
        self,
        x: Tensor,
        batch_index: Tensor | None = None,
        y: Tensor | None = None,
        n_samples: int = 1,
        transform_batch: Any = None,
    ) -> Tensor:
        """Expression frequencies (rows sum to 1) for a drawn z: ``inference(...)["px_scale"]``.

        Parameters
        ----------
        x, batch_index, y, n_samples, transform_batch
            As in :meth:`inference`.

        Returns
        -------
        Tensor
            (N, G), or (S, N, G) for `n_samples` > 1.
        """
        return self.inference(
            x,
            batch_index=batch_index,
            y=y,
            n_samples=n_samples,
            transform_batch=transform_batch,
        )["px_scale"]

    def get_sample_rate(
        self,
        x: Tensor,
        batch_index: Tensor | None = None,
        y: Tensor | None = None,
        n_samples: int = 1,
        transform_batch: Any = None,
    ) -> Tensor:
        """Mean counts for a drawn z and library size: ``inference(...)["px_rate"]``.

        Parameters
        ----------
        x, batch_index, y, n_samples, transform_batch
            As in :meth:`inference`.

        Returns
        -------
        Tensor
            (N, G), or (S, N, G) for `n_samples` > 1.
        """
        return self.inference(
            x,
            batch_index=batch_index,
            y=y,
            n_samples=n_samples,
            transform_batch=transform_batch,
        )["px_rate"]
