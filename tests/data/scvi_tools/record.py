"""Record what scvi-tools computes and saves, as fixtures for the tests of the conversions.

Run where scvi-tools is installed (1.4.2 wrote what is here)::

    python tests/data/scvi_tools/record.py

Writes beside itself, for each case, the file that ``SCVI.save`` writes (``CASE/model.pt``), and
``outputs.npz`` with the counts and what each model answered.
"""

import pathlib
import shutil
import sys
import warnings

import numpy as np
import scvi
import torch

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "support"))

from scvi_cells import N_CELLS, SEED, draw_counts, make_cells  # noqa: E402

SETUP = {"batch_key": "donor", "labels_key": "cell_type"}
CASES = {
    "batches": ({"batch_key": "donor"}, {"n_layers": 2}),
    "numbered": ({"batch_key": "lane"}, {"gene_likelihood": "poisson", "dropout_rate": 0.0}),
    "learned": (
        SETUP,
        {"dispersion": "gene-batch", "gene_likelihood": "nb", "use_observed_lib_size": False},
    ),
    "labels": (SETUP, {"dispersion": "gene-label", "latent_distribution": "ln"}),
    "gene_cell": ({"batch_key": "donor", "layer": "counts"}, {"dispersion": "gene-cell"}),
    "one_batch": ({}, {"dispersion": "gene-batch"}),
}


def answers(model: scvi.model.SCVI) -> dict[str, np.ndarray]:
    """Outputs of the module for all cells at once, at one draw of its random numbers."""
    (tensors,) = model._make_data_loader(model.adata, batch_size=N_CELLS)
    torch.manual_seed(SEED)
    with torch.no_grad():
        inference, generative, loss = model.module(tensors)
    px = generative["px"]
    found = {
        "qz_m": inference["qz"].loc,
        "qz_v": inference["qz"].variance,
        "px_scale": px.scale,
        "px_rate": px.rate if hasattr(px, "rate") else px.mu,
        "elbo": -sum(loss.reconstruction_loss.values()) - sum(loss.kl_local.values()),
    }
    if hasattr(px, "theta"):
        found["theta"] = px.theta
    if hasattr(px, "zi_logits"):
        found["zi_logits"] = px.zi_logits
    return {name: value.numpy() for name, value in found.items()}


def main() -> None:
    """Write everything."""
    warnings.simplefilter("ignore")
    counts = draw_counts()
    outputs = {"counts": counts.astype(np.uint8)}
    for name, (setup, options) in CASES.items():
        adata = make_cells(counts)
        scvi.settings.seed = 1
        scvi.model.SCVI.setup_anndata(adata, **setup)
        model = scvi.model.SCVI(adata, n_hidden=8, n_latent=3, **options)
        model.train(4, accelerator="cpu", batch_size=16, enable_progress_bar=False)
        model.module.eval()
        outputs |= {f"{name}/{key}": value for key, value in answers(model).items()}
        shutil.rmtree(HERE / name, ignore_errors=True)
        model.save(HERE / name)
    np.savez_compressed(HERE / "outputs.npz", **outputs)


if __name__ == "__main__":
    main()
