"""Bad inputs of models that begin with the weights of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import torch
from count_data import annotated

from fastvae import Model
from fastvae.integrations.convert import from_scvi_tools
from fastvae.integrations.convert_options import options_from
from fastvae.integrations.legacy import from_legacy_checkpoint, load_vae

LEGACY = Path(__file__).parents[1] / "fixtures" / "legacy" / "checkpoint.pt"


def _reference(**options: Any) -> Model:
    model = Model(annotated(), n_latent=2, n_hidden=4, **{"batch_key": "batch", **options})
    return model.fit(1, seed=0, progress=False, device="cpu")


def _query(**options: Any) -> anndata.AnnData:
    adata = annotated()
    adata.obs["batch"] = options.get("batch", "new")
    if "column" in options:
        adata.var["symbol"] = adata.var_names
        adata.var_names = adata.var.pop(options["column"]).to_numpy()
    if "prefix" in options:
        adata.var_names = [f"{options['prefix']}{i}" for i in range(adata.n_vars)]
        del adata.var["gene_ids"]
    return adata


def _named_reference() -> Model:
    model = Model(annotated(), n_latent=2, n_hidden=4)
    return model.fit(1, seed=0, progress=False, device="cpu").map_query(
        _query(batch="reference"), batch_key="batch", progress=False
    )


def _saved(folder: Path, thing: Any) -> Path:
    torch.save(thing, folder / "vae.pt")
    return folder / "vae.pt"


CASES: list[tuple[str, Callable[[Path], Any]]] = [
    ("a query without anything new", lambda d: _reference().map_query(annotated())),
    ("an unknown freeze", lambda d: _reference().map_query(_query(), freeze="all")),
    ("min_genes=2", lambda d: _reference().map_query(_query(), min_genes=2)),
    ("a query with other genes", lambda d: _reference().map_query(_query(prefix="ENSMUSG"))),
    ("a query with other gene names", lambda d: _reference().map_query(_query(column="gene_ids"))),
    (
        "a query without the batch column",
        lambda d: _reference().map_query(_query(), batch_key="donor"),
    ),
    ("a batch named as a reference without batches", lambda d: _named_reference()),
    ("a reference that is no model", lambda d: Model.load_query(_query(), 3)),
    (
        "a reference that is not trained",
        lambda d: Model.load_query(_query(), Model(annotated(), n_hidden=4)),
    ),
    ("a scvi-tools folder that is not there", lambda d: from_scvi_tools(d / "model")),
    ("a scvi-tools folder without a model", lambda d: from_scvi_tools(d)),
    (
        "an encoder told a batch that there is not",
        lambda d: Model(annotated(), encode_covariates=True),
    ),
    ("a scvi-tools model with layer norm", lambda d: _options(use_layer_norm="both")),
    ("a scvi-tools model of the normal", lambda d: _options(gene_likelihood="normal")),
    (
        "a scvi-tools model with batch embeddings",
        lambda d: _options(batch_representation="embedding"),
    ),
    ("a checkpoint that is not there", lambda d: load_vae(d / "vae.pt")),
    ("a checkpoint that is no state dict", lambda d: load_vae(_saved(d, torch.ones(2)))),
    ("a checkpoint of another network", lambda d: load_vae(_saved(d, {"a": torch.ones(2)}))),
    ("a checkpoint with another n_latent", lambda d: load_vae(LEGACY, n_latent=10)),
    ("a checkpoint of other genes", lambda d: from_legacy_checkpoint(LEGACY, annotated())),
]


def _options(**init: Any) -> None:
    options_from(init, 3)
