"""Record what scvi-tools answers after training, as fixtures for the parity tests.

Run where scvi-tools and fastvae are installed::

    python tests/data/record_scvi_tools.py

Writes ``scvi_tools_answers.npz`` beside itself: the weights of a small model, and what
scvi-tools makes of the very same weights and counts.
"""

from __future__ import annotations

import pathlib
import warnings

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
DATA = {"n_cells": 160, "n_genes": 40, "n_batches": 2, "n_types": 3, "density": 0.25, "seed": 3}
OPTIONS = {"batch_key": "batch", "n_latent": 3, "n_hidden": 16}
DE = {
    "change": {"mode": "change", "group1": "type_1", "group2": "type_0"},
    "corrected": {"mode": "change", "group1": "type_2", "batch_correction": True},
    "added": {"mode": "change", "group1": "type_0", "test_mode": "two", "delta": 0.5},
    "vanilla": {"mode": "vanilla", "group1": "type_0"},
}
DE_SETTINGS = {"n_samples_overall": 40_000, "threshold_counts": 0.1}


def main() -> None:
    warnings.simplefilter("ignore")
    import scvi

    from fastvae import Model
    from fastvae.datasets import simulate
    from fastvae.integrations.convert import to_scvi_tools

    adata = simulate(**DATA)
    model = Model(adata, **OPTIONS)
    model.fit(120, batch_size=32, learning_rate=5e-3, n_epochs_kl_warmup=20, seed=0, device="cpu")
    found = {f"weights/{name}": value.numpy() for name, value in model.module.state_dict().items()}
    theirs = to_scvi_tools(model, adata)
    scvi.settings.seed = 0  # numpy's and torch's too
    for name, question in DE.items():
        table = theirs.differential_expression(
            groupby="cell_type", silent=True, **question, **DE_SETTINGS
        ).loc[adata.var_names]
        found[f"de/{name}/columns"] = np.array(list(table.columns))
        for column in table.columns:
            if table[column].dtype != object:
                found[f"de/{name}/{column}"] = table[column].to_numpy()
    mean, variance = theirs.get_latent_representation(return_dist=True)
    found |= {"latent_mean": mean, "latent_variance": variance}
    parameters = theirs.get_likelihood_parameters(n_samples=500, give_mean=True)
    found |= {f"parameters/{name}": values for name, values in parameters.items()}
    for kind in ("pearson", "spearman"):
        matrix = theirs.get_feature_correlation_matrix(n_samples=200, correlation_type=kind)
        found[f"correlation/{kind}"] = matrix.to_numpy()
    found["versions"] = np.array([scvi.__version__, torch.__version__])
    small = {
        name: values.astype(np.float32) if values.dtype == np.float64 else values
        for name, values in found.items()
    }
    np.savez_compressed(HERE / "scvi_tools_answers.npz", **small)


if __name__ == "__main__":
    main()
