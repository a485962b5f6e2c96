"""How often real cells take the rarer parts of the likelihood kernel: shares of counts and passes.

python bench count_shares --data FOLDER           prints the table
python bench count_shares --data FOLDER --write   also writes tests/support/count_shares.json

FOLDER holds pbmc_7sets_10k.h5ad and pbmc3k_raw.h5ad. Over-dispersed genes are those of the largest
variance over mean. A pass is one round of a program: as it lists counts, one for each thread, or
over a list of 32 whole counts from 2 to 7, or of 32 larger ones; the thread of a cell with most
counts above 1 decides, and the warp with the longest list. A block is as many genes as a thread
has bits for. The compile tests and `gpu_model` weigh the kernel's parts by these numbers, so that
neither needs the data.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp
from _kit.environment import describe
from _kit.results import write_json

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests" / "support" / "count_shares.json"
SETS = {"pbmc_7sets_10k": (2000, None), "pbmc3k_raw": (2000, None)}
WARPS = (4, 8, 16)
PER_WARP, GROUP = 128, 4  # genes of a warp in one pass, and of a thread
PASSES = 8  # of a block
CELLS = 1000  # drawn for the passes


def over_dispersed(x: sp.csr_matrix, n_top: int) -> np.ndarray:
    """Genes of the largest variance over mean, in their order."""
    mean = np.asarray(x.mean(axis=0)).ravel()
    square = np.asarray(x.multiply(x).mean(axis=0)).ravel()
    spread = np.divide(square - mean**2, mean, out=np.zeros_like(mean), where=mean > 0)
    return np.sort(np.argsort(-spread, kind="stable")[:n_top])


def passes(x: np.ndarray, warps: int) -> dict[str, float]:
    """Rounds over the two lists, means over cells."""
    n, genes = x.shape
    tiles = -(-genes // (PER_WARP * warps))
    padded = np.zeros((n, tiles * warps * PER_WARP), dtype=x.dtype)
    padded[:, :genes] = x
    by_warp = padded.reshape(n, tiles, warps, PER_WARP // GROUP, GROUP)
    large = (by_warp > 7) | (by_warp != np.round(by_warp))
    of_thread = ((by_warp > 1) | large).sum(axis=4)
    blocks = [of_thread[:, i : i + PASSES].sum(axis=1) for i in range(0, tiles, PASSES)]
    listing = sum(block.max(axis=(1, 2)) for block in blocks)
    larges = large.sum(axis=(1, 3, 4)).max(axis=1)
    smalls = ((by_warp > 1) & ~large).sum(axis=(1, 3, 4)).max(axis=1)
    return {
        "blocks": len(blocks),
        "listing": float(listing.mean()),
        "small": float(np.ceil(smalls / 32).mean()),
        "large": float(np.ceil(larges / 32).mean()),
    }


def shares(x: sp.csr_matrix) -> dict[str, Any]:
    """Shares of entries by kind of count, and the passes of programs of several sizes."""
    entries = x.shape[0] * x.shape[1]
    some = np.random.default_rng(0).choice(x.shape[0], min(CELLS, x.shape[0]), replace=False)
    dense = x[np.sort(some)].toarray()
    tiles = [dense[:, i : i + 512] for i in range(0, x.shape[1], 512)]
    return {
        "genes": x.shape[1],
        "zero": 1 - x.nnz / entries,
        "one": int((x.data == 1).sum()) / entries,
        "two to seven": int(((x.data > 1) & (x.data <= 7)).sum()) / entries,
        "larger": int((x.data > 7).sum()) / entries,
        "tiles of 512 genes with a larger one": float(
            np.mean([(tile > 7).any(axis=1).mean() for tile in tiles])
        ),
        "passes": {str(warps): passes(dense, warps) for warps in WARPS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the .h5ad files")
    parser.add_argument("--write", action="store_true", help="write the JSON")
    options = parser.parse_args()
    rows = []
    for name, selections in SETS.items():
        x = anndata.read_h5ad(options.data / f"{name}.h5ad").X.tocsr()
        x.eliminate_zeros()
        for n_top in selections:
            chosen = x if n_top is None else x[:, over_dispersed(x, n_top)].tocsr()
            which = "all genes" if n_top is None else f"{n_top} over-dispersed genes"
            rows.append({"data": name, "selection": which, **shares(chosen)})
            print(rows[-1])
    if options.write:
        write_json(OUT, {"environment": describe(), "rows": rows})


if __name__ == "__main__":
    main()
