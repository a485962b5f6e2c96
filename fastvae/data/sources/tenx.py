"""Cell Ranger's HDF5 files (v2, v3), and what all 10x formats have in common."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._words import make_unique, those_there
from ...errors import InputError
from ..checks import Origin, check_axes
from .countfile import MemoryFile, checked_file
from .folder_layout import choose_genome, filtered_twin
from .hdf5 import genomes_v2, hdf5_root, reporting_damage
from .matrix import open_arrays, read_compressed
from .slots import Slot
from .tenx_structure import check_tenx_v2, check_tenx_v3

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp


_GENES = "Gene Expression"
_MANY_BARCODES = 20_000
_GENES_OF_A_CELL = 10


def read_tenx_h5(file: Any, path: Path, kind: str, slot: Slot) -> MemoryFile:
    """Read an open Cell Ranger .h5 file.

    Parameters
    ----------
    file
        Open ``h5py.File``.
    path
        Its name, for messages.
    kind
        ``"10x v2"`` (one group per genome) or ``"10x v3"`` (group ``matrix``).
    slot
        Which genome; needed only where a v2 file has several. In a v3 file it selects genes.

    Returns
    -------
    MemoryFile
        Checked counts; ``var`` has ``gene_ids`` and, for v3, ``feature_types`` and ``genome``.

    Raises
    ------
    InputError
        Several genomes and none chosen, an unknown one, a damaged file, or not counts.
    """
    genome = slot.genome
    with reporting_damage(path):
        root = hdf5_root(file, path, slot.allow_links)
        if kind == "10x v2":
            chosen = choose_genome(genomes_v2(root), genome, str(path))
            check_tenx_v2(root, chosen)
            group = file[chosen]
            names, columns = group["gene_names"], {"gene_ids": _strings(group["genes"])}
        else:
            check_tenx_v3(root)
            group = file["matrix"]
            features = group["features"]
            names, columns = features["name"], {"gene_ids": _strings(features["id"])}
            for column, field in (("feature_types", "feature_type"), ("genome", "genome")):
                if field in features:
                    columns[column] = _strings(features[field])
        symbols, barcodes = _strings(names), _strings(group["barcodes"])
        where = str(path)
        n_features, n_barcodes = (int(n) for n in group["shape"][:])
        check_lengths(where, n_barcodes, len(barcodes), n_features, len(symbols))
        counts = read_compressed(
            *open_arrays(group, n_barcodes, where), (n_barcodes, n_features), where
        )
        if kind == "10x v2":
            genome = None
        return _assemble(
            counts, barcodes, symbols, columns, str(path), genome, slot.allow_fractional
        )


def _assemble(
    counts: sp.csr_matrix,
    barcodes: Any,
    symbols: Any,
    columns: dict[str, np.ndarray],
    source: str,
    genome: str | None,
    allow_fractional: bool,
) -> MemoryFile:
    import pandas as pd

    var = pd.DataFrame(columns, index=pd.Index(list(symbols), dtype=object))
    obs = pd.DataFrame(index=pd.Index(list(barcodes), dtype=object))
    return assembled(counts, obs, var, Path(source), genome, allow_fractional)


def assembled(
    counts: sp.csr_matrix,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    path: Path,
    genome: str | None,
    allow_fractional: bool,
) -> MemoryFile:
    """Join counts and names as they stand in the file, and check them.

    Parameters
    ----------
    counts
        CSR float32 (N, G), owned by the caller.
    obs, var
        Indexed by barcodes and by symbols, which may repeat.
    path
        The file, for messages.
    genome
        Keep its genes alone: those with that name in ``var["genome"]``.
    allow_fractional
        Whether values may be other than whole numbers.

    Raises
    ------
    InputError
        No genes among the features, an unknown genome, or not counts.
    """
    import pandas as pd

    keep = _kept_features(var, str(path), genome)
    if not keep.all():
        counts, var = counts[:, np.flatnonzero(keep)], var[keep].copy()
    # Symbols repeat in every annotation; the ids in gene_ids stay the exact key.
    var.index = pd.Index(make_unique(var.index.tolist()), dtype=object)
    origin = Origin(str(path), "", obs.index, var.index)
    check_axes(origin)
    file = checked_file(counts, obs, var, origin, allow_fractional)
    _warn_of_empty_droplets(counts, path)
    return file


def _warn_of_empty_droplets(counts: sp.csr_matrix, path: Path) -> None:
    n_cells = counts.shape[0]
    n_empty = int(np.count_nonzero(np.diff(counts.indptr) < _GENES_OF_A_CELL))
    if n_cells >= _MANY_BARCODES and n_empty > n_cells / 2:
        twin = filtered_twin(path)
        advice = f"use {twin}" if twin else "use the filtered counts, or call the cells"
        warnings.warn(
            f"{path} is unfiltered: {n_empty} of its {n_cells} barcodes have fewer than "
            f"{_GENES_OF_A_CELL} genes, as empty droplets have; {advice} before you train a model",
            UserWarning,
            stacklevel=2,
        )


def _kept_features(var: Any, source: str, genome: str | None) -> np.ndarray:
    keep = np.ones(len(var), dtype=bool)
    if "feature_types" in var:
        types = var["feature_types"].to_numpy()
        keep = types == _GENES
        if not keep.any():
            raise InputError(
                f"{source} has no feature of type {_GENES!r}; "
                f"{those_there(sorted(set(types)))}; fastvae models gene counts"
            )
        if not keep.all():
            dropped = ", ".join(
                f"{int((types == kind).sum())} of {kind!r}" for kind in sorted(set(types[~keep]))
            )
            warnings.warn(
                f"{source}: kept {int(keep.sum())} features of type {_GENES!r}, dropped {dropped}",
                UserWarning,
                stacklevel=2,
            )
    if genome is not None:
        genomes = var["genome"].to_numpy() if "genome" in var else np.array([], dtype=object)
        chosen = choose_genome(sorted(set(genomes)), genome, source)
        keep &= genomes == chosen
    return keep


def check_lengths(
    where: str, n_columns: int, n_barcodes: int, n_rows: int, n_features: int
) -> None:
    """Check that a matrix of genes x cells has as many genes and cells as there are names.

    Raises
    ------
    InputError
        The numbers differ.
    """
    if n_columns != n_barcodes:
        raise InputError(
            f"{where} has {n_columns} cells, but there are {n_barcodes} barcodes; "
            "the files do not belong together or one is incomplete"
        )
    if n_rows != n_features:
        raise InputError(
            f"{where} has {n_rows} genes, but there are {n_features} gene lines; "
            "the files do not belong together or one is incomplete"
        )


def _strings(dataset: Any) -> np.ndarray:
    values = dataset[:].tolist()
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], dtype=object)
