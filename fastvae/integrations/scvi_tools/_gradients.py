"""Gradients without autograd of scvi-tools' module, where it is as scvi-tools makes it."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.nn import DecoderSCVI, Encoder, FCLayers
from torch import Tensor

from ...functional.derivatives import log_library_size, ordered_counts
from ...functional.gather import CountLogs
from ...nn import VARIANCE_FLOOR, refuse_one_cell
from ...vae.gradients import Losses, NetworkGradients, encoder_counts
from ...vae.stock import hides_a_method, remember_code, trained_as_it_is, untouched
from ._loop_module import ByRow
from ._module import NO_COUNTS, VAE
from ._networks import codes_of, decodes_plainly, encodes_plainly

_LIKELIHOODS = ("zinb", "nb", "poisson")
remember_code(dict.fromkeys((Encoder, DecoderSCVI, FCLayers), ("forward",)))
_METHODS = {
    name: getattr(VAE, name, None)  # the documentation's stand-in has none
    for name in ("forward", "inference", "_regular_inference", "generative", "loss", "_log_theta")
}


def why_autograd(module: Any, registered: Container[str]) -> str | None:
    """Return why the gradients of a module cannot be written out, or None if they can.

    `registered` has the keys of what is registered of the cells.
    """
    if type(module) is not VAE or hides_a_method(module):
        return "the module is not fastvae's VAE"
    if any(getattr(VAE, name, None) is not code for name, code in _METHODS.items()):
        return "a method of the module was replaced"
    if module.gene_likelihood not in _LIKELIHOODS or module.minified_data_type is not None:
        return "the likelihood is not one of counts, or the data is minified"
    if module.batch_representation != "one-hot" or module.use_size_factor_key:
        return "batches are embedded, or there are size factors"
    if REGISTRY_KEYS.CONT_COVS_KEY in registered or REGISTRY_KEYS.CAT_COVS_KEY in registered:
        return "there are more covariates than the batch"
    encoders = [module.z_encoder, *([] if module.use_observed_lib_size else [module.l_encoder])]
    networks = [*encoders, module.decoder]
    plain = all(map(encodes_plainly, encoders)) and decodes_plainly(module.decoder)
    if not plain or type(module.decoder) is not DecoderSCVI:
        return "a network was changed"
    if any(encoder.var_eps != VARIANCE_FLOOR for encoder in encoders):
        return "the least variance is another"
    if not all(untouched(network, FCLayers) for network in networks):
        return "a layer was changed"
    if not all(part.inject_covariates for part in module.modules() if type(part) is FCLayers):
        return "covariates go into the first layer only"
    if not all(map(trained_as_it_is, module.parameters())):
        return "a parameter is frozen or watched"
    return None


class ModuleGradients:
    """Losses and gradients of a minibatch, for a module that `why_autograd` says nothing against.

    Parameters
    ----------
    module
        In training mode.
    products
        As for `NetworkGradients`.

    Attributes
    ----------
    module
        The module.
    networks
        The `NetworkGradients` of the module, which have the gradients after each call.
    """

    def __init__(self, module: Any, products: torch.dtype | None = None) -> None:
        self.module = module
        self.networks = NetworkGradients(module, module.n_input, module.gene_likelihood, products)
        parts: list[Any] = [module.z_encoder.encoder, module.decoder.px_decoder]
        self._told = [sum(part.n_cat_list) for part in parts]

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        batch: Tensor,
        labels: Tensor,
        kl_weight: Tensor,
        share: float = 1.0,
        logs: CountLogs | None = None,
    ) -> Losses:
        """Return the losses of cells; `batch` and `labels` (N, 1) are as registered.

        The other arguments are those of ``NetworkGradients.run``.
        """
        refuse_one_cell(x.shape[0])
        module = self.module
        codes = codes_of(batch, "batch_index")
        counts = ordered_counts(x)
        dtype = module.z_encoder.mean_encoder.weight.dtype
        seen = encoder_counts(counts, dtype, module.log_variational, logs)
        by_encoder, by_decoder = (codes.one_hot(k, dtype) if k else None for k in self._told)
        library: Any
        if module.use_observed_lib_size:
            library = log_library_size(counts, NO_COUNTS).to(dtype)
        else:
            library = module._compute_local_library_params(batch)
        theta: tuple[Tensor | None, Tensor | None] = None, None
        if self.networks.has_table:
            found = module._log_theta(None, batch, labels)
            theta = found["log_theta"], found.get("theta_index")
        return self.networks.run(
            counts, seen, by_encoder, by_decoder, library, theta, kl_weight, share
        )


class RowGradients:
    """The gradients of a `ByRow` as fastvae's training loop takes them.

    Parameters
    ----------
    by_row
        The module and its registered columns, in training mode.
    products
        As for `NetworkGradients`.
    """

    def __init__(self, by_row: ByRow, products: torch.dtype | None = None) -> None:
        self._by_row = by_row
        self._gradients = ModuleGradients(by_row.module, products)

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        local_l_mean: Any,
        local_l_var: Any,
        batch_index: Any,
        y: Tensor,
        kl_weight: Tensor,
        share: float = 1.0,
        logs: CountLogs | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Do what ``ByRow.forward`` and autograd's way back do."""
        columns, rows = self._by_row.columns, y.reshape(-1)
        batch, labels = (
            columns[key].index_select(0, rows)
            for key in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY)
        )
        losses = self._gradients(x, batch, labels, kl_weight, share, logs)
        self._gradients.networks.attach()
        return self._by_row.noted(*losses)


def gradients_of(by_row: ByRow, products: torch.dtype | None = None) -> RowGradients | None:
    """Return the gradients without autograd, or None; see `train.step.written_gradients`."""
    if hides_a_method(by_row) or why_autograd(by_row.module, by_row.columns):
        return None
    return RowGradients(by_row, products)
