"""The step without autograd for scvi-tools' module, where it is as scvi-tools makes it."""

from __future__ import annotations

from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.nn import DecoderSCVI, Encoder, FCLayers
from torch import Tensor

from ...functional.derivatives import log_library_size, ordered_counts
from ...functional.gather import CountLogs
from ...nn import VARIANCE_FLOOR, refuse_one_cell
from ...vae.gradients import NetworkGradients, encoder_counts
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


def why_autograd(by_row: ByRow) -> str | None:
    """Return why the gradients of a module cannot be written out, or None if they can."""
    module: Any = by_row.module
    if type(module) is not VAE or hides_a_method(module) or hides_a_method(by_row):
        return "the module is not fastvae's VAE"
    if any(getattr(VAE, name, None) is not code for name, code in _METHODS.items()):
        return "a method of the module was replaced"
    if module.gene_likelihood not in _LIKELIHOODS or module.minified_data_type is not None:
        return "the likelihood is not one of counts, or the data is minified"
    if module.batch_representation != "one-hot" or module.use_size_factor_key:
        return "batches are embedded, or there are size factors"
    if {REGISTRY_KEYS.CONT_COVS_KEY, REGISTRY_KEYS.CAT_COVS_KEY} & by_row.columns.keys():
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
    """Loss and gradients of a minibatch, for a module that `why_autograd` says nothing against.

    Parameters
    ----------
    by_row
        The module and its registered columns, in training mode.
    products
        As for `NetworkGradients`.
    """

    def __init__(self, by_row: ByRow, products: torch.dtype | None = None) -> None:
        self._by_row = by_row
        module: Any = by_row.module
        self._module = module
        self._networks = NetworkGradients(module, module.n_input, module.gene_likelihood, products)
        parts: list[Any] = [module.z_encoder.encoder, module.decoder.px_decoder]
        self._told = [sum(part.n_cat_list) for part in parts]

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
        """Do what ``ByRow.forward`` and autograd's way back do; see `NetworkGradients`."""
        refuse_one_cell(x.shape[0])
        module, columns, rows = self._module, self._by_row.columns, y.reshape(-1)
        batch = columns[REGISTRY_KEYS.BATCH_KEY].index_select(0, rows)
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
        if self._networks.has_table:
            labels = columns[REGISTRY_KEYS.LABELS_KEY].index_select(0, rows)
            found = module._log_theta(None, batch, labels)
            theta = found["log_theta"], found.get("theta_index")
        losses = self._networks.run(
            counts, seen, by_encoder, by_decoder, library, theta, kl_weight, share
        )
        return self._by_row.noted(*losses)


def gradients_of(by_row: ByRow, products: torch.dtype | None = None) -> ModuleGradients | None:
    """Return the gradients without autograd, or None; see `train.step.written_gradients`."""
    return None if why_autograd(by_row) else ModuleGradients(by_row, products)
