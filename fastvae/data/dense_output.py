"""Dense matrices of cells by genes, written some cells at a time: .h5ad, zarr and Matrix Market."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from .._files import atomic_path, cannot_write, check_new_file, replace_folder, require_room
from ..errors import InputError
from .convert import check_target
from .sources.arrays import fast_zarr

if TYPE_CHECKING:
    import pandas as pd

Append = Callable[[np.ndarray], None]
"""Takes the values (B, G) float32 of the next cells."""

CHUNK_CELLS, CHUNK_GENES = 512, 4096
"""Of a zarr array."""


@dataclass(frozen=True, eq=False)
class DenseMatrix:
    """What is known of a matrix before its values.

    Attributes
    ----------
    obs, var
        One row per cell and per gene, in a form that these files hold (`storable`).
    about
        How the values were made, for ``uns``.
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    about: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return len(self.obs), len(self.var)

    def other_parts(self) -> dict[str, Any]:
        """Return the elements of an AnnData beside ``X``."""
        uns = {"fastvae_version": __version__, "normalized_expression": self.about}
        empty = ("layers", "obsm", "varm", "obsp", "varp")
        return {"obs": self.obs, "var": self.var, "uns": uns, **{name: {} for name in empty}}


def check_dense_output(path: Path, *, overwrite: bool) -> Path:
    """Return `path`, before any work is done.

    Raises
    ------
    InputError
        It is there and `overwrite` is false, cannot be written, or names none of the formats.
    """
    if path.suffix not in _WRITERS:
        raise InputError(f"path {path}: name it .h5ad, .zarr or .mtx")
    if path.suffix == ".zarr":
        check_target(path, overwrite=overwrite)
        return path
    names = _name_files(path) if path.suffix == ".mtx" else ()
    for target in (path, *names):
        check_new_file(target, overwrite=overwrite)
    return path


def dense_output(path: Path, matrix: DenseMatrix) -> AbstractContextManager[Append]:
    """Open an output that `check_dense_output` let pass; it is in place when the block ends well.

    Parameters
    ----------
    path
        ``.h5ad`` or ``.zarr``: an AnnData with a dense ``X``. ``.mtx``: genes by cells as 10x has
        them, with NAME_genes.tsv and NAME_barcodes.tsv beside it; every entry is in it.
    matrix
        Names of cells and genes.

    Raises
    ------
    InputError
        The disk is full, or the file cannot be written; what was there before is untouched.
    """
    return _WRITERS[path.suffix](path, matrix)


@contextmanager
def _h5ad(path: Path, matrix: DenseMatrix) -> Iterator[Append]:
    """Let HDF5 lay out the file, and write the values to where ``X`` lies in it.

    HDF5 may crash where the disk is full; writing to a file by itself raises an error.
    """
    needed = 4 * matrix.shape[0] * matrix.shape[1]
    require_room(path.parent, needed, str(path), "write fewer genes or cells")
    with atomic_path(path) as temporary:
        offset = _lay_out(temporary, matrix)
        with temporary.open("r+b") as file:
            file.seek(offset)

            def append(values: np.ndarray) -> None:
                file.write(np.ascontiguousarray(values, dtype="<f4").data)

            yield append


def _lay_out(path: Path, matrix: DenseMatrix) -> int:
    """Write everything but the values of ``X``, and return where in the file they belong."""
    import h5py
    from anndata.io import write_elem
    from h5py import h5d, h5p, h5s, h5t

    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name, part in matrix.other_parts().items():
            write_elem(file, name, part)
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_layout(h5d.CONTIGUOUS)
        plan.set_alloc_time(h5d.ALLOC_TIME_EARLY)  # so that it has its place now
        plan.set_fill_time(h5d.FILL_TIME_NEVER)
        stored = h5d.create(file.id, b"X", h5t.IEEE_F32LE, h5s.create_simple(matrix.shape), plan)
        h5py.Dataset(stored).attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        offset = stored.get_offset()
    assert offset is not None
    return int(offset)


@contextmanager
def _zarr(path: Path, matrix: DenseMatrix) -> Iterator[Append]:
    """Write a store in a folder beside `path`, and put it in its place."""
    with fast_zarr(), _reporting(path), _folder_beside(path) as folder:
        new = Path(folder) / path.name
        array = _zarr_array(new, matrix)
        done = 0

        def append(values: np.ndarray) -> None:
            nonlocal done
            array[done : done + len(values)] = values
            done += len(values)

        yield append
        replace_folder(new, path)


def _folder_beside(path: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent)


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Name the output in errors of the system."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        kept = "What was there before is untouched" if path.exists() else "Nothing is left of it"
        raise cannot_write(path, error, kept) from error


def _zarr_array(folder: Path, matrix: DenseMatrix) -> Any:
    import zarr
    from anndata.io import write_elem

    root = zarr.open_group(folder, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notices about defaults of future versions
        for name, part in matrix.other_parts().items():
            write_elem(root, name, part)
    n_cells, n_genes = matrix.shape
    chunks = (min(n_cells, CHUNK_CELLS), min(n_genes, CHUNK_GENES))
    array = root.create_array("X", shape=matrix.shape, dtype="float32", chunks=chunks)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


@contextmanager
def _matrix_market(path: Path, matrix: DenseMatrix) -> Iterator[Append]:
    """Write the names first, so that a matrix which is there has its names."""
    import pandas as pd

    n_cells, n_genes = matrix.shape
    for target, names in zip(_name_files(path), (matrix.var.index, matrix.obs.index), strict=True):
        with atomic_path(target) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write("%%MatrixMarket matrix coordinate real general\n")
        file.write(f"{n_genes} {n_cells} {n_genes * n_cells}\n")
        done = 0

        def append(values: np.ndarray) -> None:
            nonlocal done
            cells = np.arange(done, done + len(values)) + 1
            done += len(values)
            entries = {
                "gene": np.tile(np.arange(n_genes) + 1, len(values)),
                "cell": np.repeat(cells, n_genes),
                "value": values.ravel(),
            }
            # nine digits give back every float32
            pd.DataFrame(entries).to_csv(
                file, sep=" ", header=False, index=False, float_format="%.9g"
            )

        yield append


def _name_files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.stem}_genes.tsv"), path.with_name(f"{path.stem}_barcodes.tsv")


_WRITERS: dict[str, Callable[[Path, DenseMatrix], AbstractContextManager[Append]]] = {
    ".h5ad": _h5ad,
    ".zarr": _zarr,
    ".mtx": _matrix_market,
}
