"""The options of scvi-tools' SCVI and SCANVI as options of `fastvae.Model`, and back.

With its defaults the network of ``scvi.model.SCVI`` is that of `fastvae.VAE`, parameter for
parameter under the same names. Options that change the network or the likelihood are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.covariates import CovariateKeys
from ..errors import InputError
from ..model.setup import Options

_SAME = ("n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "latent_distribution")
_SAME_DEFAULTS = {
    "n_hidden": 128,
    "n_latent": 10,
    "n_layers": 1,
    "dropout_rate": 0.1,
    "dispersion": "gene",
    "latent_distribution": "normal",
}
_LIKELIHOODS = ("zinb", "nb", "poisson")

_REQUIRED: dict[str, tuple[Any, ...]] = {
    "log_variational": (True,),
    "use_batch_norm": ("both",),
    "use_layer_norm": ("none", None),
    "batch_representation": ("one-hot",),
    "var_activation": (None,),
    "extra_encoder_kwargs": (None, {}),
    "extra_decoder_kwargs": (None, {}),
    "classifier_parameters": (None, {}),
    "y_prior": (None,),
    "labels_groups": (None,),
    "use_labels_groups": (False,),
    "datamodule": (None,),
}
"""Options for which fastvae has one value, the first; the others mean the same."""

_WITHOUT_EFFECT = ("extra_payload_autotune", "batch_embedding_kwargs")


def options_from(
    init: Mapping[str, Any], n_batch: int, covariates: CovariateKeys | None = None
) -> Options:
    """Return fastvae's options for those that a scvi-tools model was made with.

    Parameters
    ----------
    init
        Arguments of its constructor, by name; those that are missing have their defaults.
    n_batch
        Number of batches it tells apart.
    covariates
        Its columns of covariates.

    Raises
    ------
    InputError
        An option that fastvae does not have; the message names it and the value it has.
    """
    init = dict(init)
    covariates = covariates or CovariateKeys()
    for name, allowed in _REQUIRED.items():
        value = init.pop(name, allowed[0])
        if not any(value is one or value == one for one in allowed):
            _refuse(f"{name}={value!r}", f"with {name}={allowed[0]!r}")
    encode = bool(init.pop("encode_covariates", False))
    deeply = bool(init.pop("deeply_inject_covariates", True))
    if n_batch < 2 and not (covariates.categorical or covariates.continuous):
        encode, deeply = False, True  # there is nothing to inject
    likelihood = init.pop("gene_likelihood", "zinb")
    if likelihood not in _LIKELIHOODS:
        _refuse(f"gene_likelihood={likelihood!r}", f"with one of {', '.join(_LIKELIHOODS)}")
    for name in _WITHOUT_EFFECT:
        init.pop(name, None)
    observed = bool(init.pop("use_observed_lib_size", True)) or covariates.size_factor is not None
    same = {name: init.pop(name, _SAME_DEFAULTS[name]) for name in _SAME}
    if init:
        name, value = next(iter(init.items()))
        _refuse(f"{name}={value!r}", "without it")
    return Options(
        **same,
        reconstruction_loss=likelihood,
        use_observed_lib_size=observed,
        encode_covariates=encode,
        deeply_inject_covariates=deeply,
    )


def options_to(options: Options) -> dict[str, Any]:
    """Return the arguments of ``scvi.model.SCVI`` for fastvae's options."""
    arguments = {name: getattr(options, name) for name in _SAME}
    arguments["gene_likelihood"] = options.reconstruction_loss
    arguments["use_observed_lib_size"] = options.use_observed_lib_size
    if options.encode_covariates:
        arguments["encode_covariates"] = True
    if not options.deeply_inject_covariates:
        arguments["deeply_inject_covariates"] = False
    return arguments


def _refuse(what: str, instead: str) -> None:
    raise InputError(
        f"the scvi-tools model was made with {what}, which fastvae.Model does not have; convert "
        f"a model made {instead}, or keep this one in scvi-tools"
    )
