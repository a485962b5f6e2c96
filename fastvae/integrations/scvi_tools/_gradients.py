"""Gradients without autograd of scvi-tools' module, where it is as scvi-tools makes it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.nn import DecoderSCVI, Encoder, FCLayers
from torch import Tensor

from ...functional.derivatives import Counts, log_library_size, ordered_counts
from ...functional.gather import CountLogs
from ...nn import VARIANCE_FLOOR, refuse_one_cell
from ...vae.gradients import Losses, NetworkGradients, covariate_columns, encoder_counts
from ...vae.stock import hides_a_method, remember_code, trained_as_it_is, untouched
from ._loop_module import ByRow
from ._module import NO_COUNTS, VAE, log_size_factor
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
    if module.batch_representation != "one-hot":
        return "batches are embedded"
    if any(key not in registered for key in _wanted(module)):
        return "covariates or size factors of the cells are missing"
    encoders = [module.z_encoder, *([] if module.use_observed_lib_size else [module.l_encoder])]
    networks = [*encoders, module.decoder]
    plain = all(map(encodes_plainly, encoders)) and decodes_plainly(module.decoder)
    if not plain or type(module.decoder) is not DecoderSCVI:
        return "a network was changed"
    if any(encoder.var_eps != VARIANCE_FLOOR for encoder in encoders):
        return "the least variance is another"
    if not all(untouched(network, FCLayers) for network in networks):
        return "a layer was changed"
    if not all(map(trained_as_it_is, module.parameters())):
        return "a parameter is frozen or watched"
    return None


def _wanted(module: Any) -> Iterator[str]:
    """Yield the keys of what the networks are told beside batch and label."""
    layers = module.decoder.px_decoder
    if module.use_size_factor_key:
        yield REGISTRY_KEYS.SIZE_FACTOR_KEY
    if len(layers.n_cat_list) > 1:
        yield REGISTRY_KEYS.CAT_COVS_KEY
    if layers.fc_layers[0][0].in_features > module.n_latent + sum(layers.n_cat_list):
        yield REGISTRY_KEYS.CONT_COVS_KEY


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

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        columns: Mapping[str, Tensor],
        kl_weight: Tensor,
        share: float = 1.0,
        logs: CountLogs | None = None,
    ) -> Losses:
        """Return the losses of cells; `columns` (N, K) has what is registered of them, by key.

        The other arguments are those of ``NetworkGradients.run``.
        """
        refuse_one_cell(x.shape[0])
        module = self.module
        counts = ordered_counts(x)
        dtype = module.z_encoder.mean_encoder.weight.dtype
        seen = encoder_counts(counts, dtype, module.log_variational, logs)
        batch, labels = (
            columns[key] for key in (REGISTRY_KEYS.BATCH_KEY, REGISTRY_KEYS.LABELS_KEY)
        )
        codes = [codes_of(batch, "batch_index")]
        if REGISTRY_KEYS.CAT_COVS_KEY in columns:
            each = columns[REGISTRY_KEYS.CAT_COVS_KEY].split(1, dim=1)
            codes += [codes_of(one, "cat_covs") for one in each]
        numbers = []
        if REGISTRY_KEYS.CONT_COVS_KEY in columns:
            numbers.append(columns[REGISTRY_KEYS.CONT_COVS_KEY].to(dtype))
        by_decoder = covariate_columns(module.decoder.px_decoder, numbers, codes, dtype)
        by_encoder = None
        if module.encode_covariates:
            by_encoder = covariate_columns(module.z_encoder.encoder, numbers, codes, dtype)
        theta: tuple[Tensor | None, Tensor | None] = None, None
        if self.networks.has_table:
            found = module._log_theta(None, batch, labels)
            theta = found["log_theta"], found.get("theta_index")
        library = self._library(counts, columns, dtype)
        return self.networks.run(
            counts, seen, by_encoder, by_decoder, library, theta, kl_weight, share
        )

    def _library(self, counts: Counts, columns: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
        """What ``NetworkGradients.run`` takes as `library`."""
        module = self.module
        if module.use_size_factor_key:
            return log_size_factor(columns[REGISTRY_KEYS.SIZE_FACTOR_KEY].log()).to(dtype)
        if module.use_observed_lib_size:
            return log_library_size(counts, NO_COUNTS).to(dtype)
        return module._compute_local_library_params(columns[REGISTRY_KEYS.BATCH_KEY])


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
        rows, columns = y.reshape(-1), self._by_row.columns.items()
        of_cells = {key: column.index_select(0, rows) for key, column in columns}
        losses = self._gradients(x, of_cells, kl_weight, share, logs)
        self._gradients.networks.attach()
        return self._by_row.noted(*losses)


def gradients_of(by_row: ByRow, products: torch.dtype | None = None) -> RowGradients | None:
    """Return the gradients without autograd, or None; see `train.step.written_gradients`."""
    if hides_a_method(by_row) or why_autograd(by_row.module, by_row.columns):
        return None
    return RowGradients(by_row, products)
