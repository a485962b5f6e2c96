"""Cell Ranger output: HDF5 files (v2, v3) and matrix-market folders (v2, v3)."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ._h5 import check_file, genomes_v2, reporting_damage
from ._matrix import read_compressed
from ._memory import require_memory
from ._names import make_unique, those_there
from .h5ad import checked
from .validate import Origin, check_axes

if TYPE_CHECKING:
    import scipy.sparse as sp
    from anndata import AnnData

_GENES = "Gene Expression"


def read_tenx_h5(file: Any, path: Path, kind: str, genome: str | None) -> AnnData:
    """Read an open Cell Ranger .h5 file.

    Parameters
    ----------
    file
        Open ``h5py.File``.
    path
        Its name, for messages.
    kind
        ``"10x v2"`` (one group per genome) or ``"10x v3"`` (group ``matrix``).
    genome
        Which genome; needed only where a v2 file has several. In a v3 file it selects genes.

    Returns
    -------
    AnnData
        Checked counts; ``var`` has ``gene_ids`` and, for v3, ``feature_types`` and ``genome``.

    Raises
    ------
    InputError
        Several genomes and none chosen, an unknown one, a damaged file, or not counts.
    """
    with reporting_damage(path):
        if kind == "10x v2":
            group = file[_choose(genomes_v2(file), genome, str(path))]
            names, columns = group["gene_names"], {"gene_ids": _strings(group["genes"])}
        else:
            group = file["matrix"]
            if "features" not in group:
                raise InputError(f"{path} is damaged: matrix has no features; download it again")
            features = group["features"]
            names, columns = features["name"], {"gene_ids": _strings(features["id"])}
            for column, field in (("feature_types", "feature_type"), ("genome", "genome")):
                if field in features:
                    columns[column] = _strings(features[field])
        symbols, barcodes = _strings(names), _strings(group["barcodes"])
        where = str(path)
        n_features, n_barcodes = (int(n) for n in group["shape"][:])
        _check_lengths(where, n_barcodes, len(barcodes), n_features, len(symbols))
        counts = read_compressed(group, (n_barcodes, n_features), where)
        if kind == "10x v2":
            genome = None
        return _assemble(counts, barcodes, symbols, columns, str(path), genome)


def read_mtx_folder(folder: Path, genome: str | None) -> AnnData:
    """Read a folder with matrix.mtx, barcodes.tsv and genes.tsv or features.tsv, plain or .gz.

    A folder of genome folders (``filtered_gene_bc_matrices/hg19/``) is accepted too; `genome`
    chooses one where there are several.

    Returns
    -------
    AnnData
        Checked counts; ``var`` has ``gene_ids`` and, where given, ``feature_types``.

    Raises
    ------
    InputError
        A file is missing or damaged, or the three do not fit together.
    """
    if _find(folder, "matrix.mtx") is None:
        inner = {sub.name: sub for sub in sorted(folder.iterdir()) if sub.is_dir()}
        inner = {name: sub for name, sub in inner.items() if _find(sub, "matrix.mtx")}
        if not inner:
            near = sorted(p.name for p in folder.iterdir() if "matrix.mtx" in p.name)
            hint = f"; rename {near[0]!r} and the files beside it" if near else ""
            raise InputError(
                f"folder {folder} has no matrix.mtx or matrix.mtx.gz{hint}; "
                "expected the folder that Cell Ranger wrote"
            )
        folder = inner[_choose(list(inner), genome, str(folder))]
    matrix = _need(folder, "matrix.mtx")
    barcodes = [fields[0] for fields in _table(_need(folder, "barcodes.tsv"))]
    genes = _table(_need(folder, "features.tsv", "genes.tsv"))
    n_fields = min(map(len, genes), default=0)
    columns = {"gene_ids": np.array([row[0] for row in genes], dtype=object)}
    if n_fields > 2:
        columns["feature_types"] = np.array([row[2] for row in genes], dtype=object)
    symbols = [row[1] if n_fields > 1 else row[0] for row in genes]
    counts = _read_mtx(matrix, len(barcodes), len(symbols))
    return _assemble(counts, barcodes, symbols, columns, str(matrix), None)


def _assemble(
    counts: sp.csr_matrix,
    barcodes: Any,
    symbols: Any,
    columns: dict[str, np.ndarray],
    source: str,
    genome: str | None,
) -> AnnData:
    import pandas as pd

    var = pd.DataFrame(columns, index=pd.Index(list(symbols), dtype=object))
    keep = _kept_features(var, source, genome)
    if not keep.all():
        counts, var = counts[:, np.flatnonzero(keep)], var[keep].copy()
    # Symbols repeat in every annotation; the ids in gene_ids stay the exact key.
    var.index = pd.Index(make_unique(var.index.tolist()), dtype=object)
    obs = pd.DataFrame(index=pd.Index(list(barcodes), dtype=object))
    origin = Origin(source, "", obs.index, var.index)
    check_axes(origin)
    return checked(counts, obs, var, origin)


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
        chosen = _choose(sorted(set(genomes)), genome, source)
        keep &= genomes == chosen
    return keep


def _read_mtx(path: Path, n_barcodes: int, n_features: int) -> sp.csr_matrix:
    """Parse the file with scipy's compiled reader; its header is compared with the names first."""
    import scipy.io
    import scipy.sparse as sp

    with reporting_damage(path):
        banner, sizes = _mtx_header(path)
        if len(sizes) != 3 or "coordinate" not in banner or "complex" in banner:
            raise InputError(
                f"{path} is not a matrix-market count matrix: expected a 'coordinate integer' "
                f"header, found {banner!r}"
            )
        rows, columns, n_values = sizes
        _check_lengths(str(path), columns, n_barcodes, rows, n_features)
        # Coordinates and int64 values as parsed, then the CSR copy beside them.
        require_memory(
            n_values * 32, f"reading {path} ({columns} cells x {rows} genes, {n_values} values)"
        )
        parsed = scipy.io.mmread(path)
        parsed.data = parsed.data.astype(np.float32)
        return sp.csr_matrix(parsed.T)


def _mtx_header(path: Path) -> tuple[str, list[int]]:
    banner = ""
    with _open_text(path) as handle:
        for line in handle:
            banner = banner or line.strip()
            if line.strip() and not line.startswith("%"):
                return banner.lower(), [int(field) for field in line.split()]
    return banner.lower(), []


def _check_lengths(
    where: str, n_columns: int, n_barcodes: int, n_rows: int, n_features: int
) -> None:
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


def _choose(names: list[str], wanted: str | None, source: str) -> str:
    if wanted is not None:
        if wanted not in names:
            there = those_there(names, wanted, "no genomes named in it")
            raise InputError(f"{source} has no genome {wanted!r}; {there}")
        return wanted
    if len(names) > 1:
        raise InputError(
            f"{source} has {len(names)} genomes; {those_there(names)}; pass genome= (--genome) to "
            "choose one"
        )
    return names[0]


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _need(folder: Path, *names: str) -> Path:
    for name in names:
        found = _find(folder, name)
        if found is not None:
            check_file(found)
            return found
    raise InputError(
        f"folder {folder} has no {' or '.join(names)} (plain or .gz) beside matrix.mtx"
    )


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _table(path: Path) -> list[list[str]]:
    with reporting_damage(path), _open_text(path) as handle:
        return [line.rstrip("\n").split("\t") for line in handle if line.strip()]


def _strings(dataset: Any) -> np.ndarray:
    values = dataset[:].tolist()
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], dtype=object)
