"""Make `fastvae/datasets/pbmc.h5ad`, the real count data that the package carries.

Sources, both from PyPI (`pip download --no-deps`; desc needs pip < 24.1):

- `desc-2.1.1-py3-none-any.whl`: PBMC 3k, 2,700 cells, 10x 3' v1 chemistry;
- `scvi_tools-1.4.2.tar.gz`: 200 cells each of PBMC 5k and 10k, 10x 3' v3 chemistry, with
  antibody counts.

Cluster labels of the 3k cells come from the `pbmc_meta` table (columns barcode and `classified`)
of the R package clustifyrdata, exported as CSV. Without `--labels` those already in the data file
are kept.

    python bench make_pbmc desc-2.1.1-py3-none-any.whl scvi_tools-1.4.2.tar.gz \
        --labels pbmc_meta.csv
"""

from __future__ import annotations

import argparse
import csv
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

OUTPUT = Path(__file__).parents[2] / "fastvae" / "datasets" / "pbmc.h5ad"
N_GENES = 2000
MIN_CELLS = 10  # a gene seen in fewer of all cells carries noise only
MARKERS = "CD3D CD3E IL7R CCR7 CD4 CD8A CD8B MS4A1 CD79A CD79B LYZ CD14 S100A8 FCGR3A MS4A7 NKG7 \
GNLY GZMB KLRD1 FCER1A CST3 PPBP PF4 HLA-DRA"
COMMON_NAME = {"Naive CD4 T": "CD4 T", "Memory CD4 T": "CD4 T", "unassigned": "unknown"}
# Antibody counts at the gap between the two modes of each histogram, per batch.
GATES = {
    "pbmc5k_v3": dict(CD3=64, CD19=32, CD14=256, CD16=32, CD56=32, CD4=32, CD8a=64),
    "pbmc10k_v3": dict(CD3=256, CD19=128, CD14=256, CD16=256, CD56=128, CD4=128, CD8a=256),
}


def load_sources(wheel: Path, sdist: Path) -> dict[str, anndata.AnnData]:
    """Read the three files out of the two archives."""
    test_data = "scvi_tools-1.4.2/tests/test_data/"
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            paths = {"pbmc3k_v1": Path(archive.extract("desc/datasets/pbmc.h5ad", folder))}
        with tarfile.open(sdist) as archive:
            for name in ("5k", "10k"):
                path = Path(folder, f"{name}.h5ad")
                member = archive.extractfile(f"{test_data}pbmc_{name}_protein_v3.h5ad")
                assert member is not None
                path.write_bytes(member.read())
                paths[f"pbmc{name}_v3"] = path
        return {batch: anndata.read_h5ad(path) for batch, path in paths.items()}


def tutorial_labels(path: Path | None, barcodes: np.ndarray) -> np.ndarray:
    """Return the published cluster label of each 3k cell, "unassigned" where it has none."""
    if path is None:
        previous = anndata.read_h5ad(OUTPUT).obs
        previous = previous[previous["batch"] == "pbmc3k_v1"]
        names = [name.removeprefix("pbmc3k_v1_") for name in previous.index]
        table = dict(zip(names, previous["cluster_label"].astype(str), strict=True))
    else:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        table = {row["barcode"].removesuffix("-1") + "-1": row["classified"] for row in rows}
    return np.array([table.get(barcode, "unassigned") for barcode in barcodes])


def protein_labels(source: anndata.AnnData, batch: str) -> np.ndarray:
    """Gate cells on antibody counts; a cell that fits no gate, or two, is "unknown"."""
    names = [str(name).split("_")[0] for name in source.uns["protein_names"]]
    counts = np.asarray(source.obsm["protein_expression"])
    high = {p: counts[:, names.index(p)] >= gate for p, gate in GATES[batch].items()}
    t_cell = high["CD3"] & ~high["CD19"] & ~high["CD14"]
    other = ~high["CD3"] & ~high["CD19"] & ~high["CD14"]
    gates = {
        "CD4 T": t_cell & high["CD4"] & ~high["CD8a"],
        "CD8 T": t_cell & high["CD8a"] & ~high["CD4"],
        "B": high["CD19"] & ~high["CD3"] & ~high["CD14"],
        "CD14+ Mono": high["CD14"] & ~high["CD3"] & ~high["CD19"],
        "NK": other & high["CD56"] & ~high["CD4"],
        "FCGR3A+ Mono": other & high["CD16"] & ~high["CD56"] & high["CD4"],
    }
    labels = np.full(source.n_obs, "unknown", dtype="U32")
    for name, cells in gates.items():
        labels[cells] = name
    return labels


def standardised_variance(counts: sp.csr_matrix) -> np.ndarray:
    """Variance of each gene over what its mean predicts, counts clipped at sqrt(cells) sigmas.

    The prediction is a quadratic of log10 variance on log10 mean over the genes of one batch.
    """
    n_cells = counts.shape[0]
    mean = np.asarray(counts.mean(axis=0)).ravel()
    square = np.asarray(counts.multiply(counts).mean(axis=0)).ravel()
    variance = (square - mean**2) * n_cells / (n_cells - 1)
    result = np.zeros(counts.shape[1])
    seen = variance > 0
    trend = np.polyfit(np.log10(mean[seen]), np.log10(variance[seen]), 2)
    sigma = np.sqrt(10 ** np.polyval(trend, np.log10(mean[seen])))
    ceiling = mean[seen] + np.sqrt(n_cells) * sigma
    dense = np.minimum(counts[:, np.flatnonzero(seen)].toarray(), ceiling)
    result[seen] = ((dense - mean[seen]) ** 2).sum(axis=0) / (n_cells - 1) / sigma**2
    return result


def choose_genes(counts: dict[str, sp.csr_matrix], names: np.ndarray) -> np.ndarray:
    """Return the positions of the chosen genes, in source order.

    Each batch ranks the genes by standardised variance; genes are taken by the number of
    batches that have them among their first N_GENES, then by the median of their ranks.
    """
    ranks = []
    for matrix in counts.values():
        order = np.argsort(-standardised_variance(matrix), kind="stable")
        rank = np.empty(len(names))
        rank[order] = np.arange(len(names))
        ranks.append(rank)
    stacked = np.stack(ranks)
    votes = (stacked < N_GENES).sum(axis=0)
    seen = np.asarray((sp.vstack(list(counts.values())) > 0).sum(axis=0)).ravel()
    order = np.lexsort((np.median(stacked, axis=0), -votes))
    order = order[(seen >= MIN_CELLS)[order]]
    marker = np.isin(names, MARKERS.split())
    chosen = [*np.flatnonzero(marker), *order[~marker[order]][: N_GENES - marker.sum()]]
    return np.sort(np.array(chosen))


def combine(sources: dict[str, anndata.AnnData], labels: Path | None) -> anndata.AnnData:
    """Intersect the genes, choose, label and stack the three batches."""
    shared = set.intersection(*(set(source.var_names) for source in sources.values()))
    first = next(iter(sources.values()))
    kept = np.array([name in shared for name in first.var_names])
    names = first.var_names.to_numpy()[kept]
    counts = {
        batch: sp.csr_matrix(source[:, names].X, dtype=np.float64)
        for batch, source in sources.items()
    }
    for batch, matrix in counts.items():
        assert np.all(matrix.data == np.round(matrix.data)), f"{batch} does not hold counts"
    chosen = choose_genes(counts, names)
    frames = []
    for batch, source in sources.items():
        barcodes = source.obs_names.to_numpy().astype(str)
        if batch == "pbmc3k_v1":
            fine = tutorial_labels(labels, barcodes)
            common = np.array([COMMON_NAME.get(name, name) for name in fine])
            origin = "published clusters"
        else:
            fine, common = np.full(source.n_obs, "unassigned"), protein_labels(source, batch)
            origin = "surface protein"
        frame: dict[str, Any] = {
            "batch": batch,
            "cell_type": common,
            "cluster_label": fine,
            "label_source": np.where(common == "unknown", "none", origin),
            "total_umi_all_genes": np.asarray(source.X.sum(axis=1)).ravel().astype(np.int32),
        }
        frames.append(pd.DataFrame(frame, index=[f"{batch}_{barcode}" for barcode in barcodes]))
    obs = pd.concat(frames)
    for column in obs.columns[:-1]:
        obs[column] = obs[column].astype("category")
    stacked = sp.vstack([matrix[:, chosen] for matrix in counts.values()], format="csr")
    stacked.sort_indices()
    stacked.data = stacked.data.astype(np.uint16)
    stacked.indices = stacked.indices.astype(np.int32)
    gene_ids = first.var["gene_ids"].astype(str).to_numpy()[kept][chosen]
    var = pd.DataFrame({"gene_ids": gene_ids}, index=names[chosen])
    return anndata.AnnData(stacked, obs=obs, var=var)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded PBMC data set.")
    parser.add_argument("desc_wheel", type=Path)
    parser.add_argument("scvi_tools_sdist", type=Path)
    parser.add_argument("--labels", type=Path, help="CSV with columns barcode and classified")
    arguments = parser.parse_args()
    data = combine(load_sources(arguments.desc_wheel, arguments.scvi_tools_sdist), arguments.labels)
    packing = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
    with h5py.File(OUTPUT, "w", libver=("earliest", "v110")) as file:
        anndata.io.write_elem(file, "/", data, dataset_kwargs=packing)
        del file["raw"]  # there is none: newer releases of anndata write that, older cannot read it
    print(data, pd.crosstab(data.obs["cell_type"], data.obs["batch"]), sep="\n")
    print(f"{data.X.nnz / np.prod(data.shape):.3%} nonzero, {OUTPUT.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
