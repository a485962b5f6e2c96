"""`read`: every kind of input becomes checked counts in one form."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from .sources.inputs import open_input, read_whole
from .sources.slots import Slot

if TYPE_CHECKING:
    from anndata import AnnData


def read(
    source: Any,
    *,
    layer: str | None = None,
    use_raw: bool = False,
    genome: str | None = None,
    allow_fractional: bool = False,
    gene_names: str | None = None,
    allow_links: bool = False,
) -> AnnData:
    """Read counts of any supported kind, check them, and return them in one form.

    Parameters
    ----------
    source
        Path of an .h5ad file, an AnnData zarr store, a 10x HDF5 file (Cell Ranger v2 or v3) or a
        folder with a .mtx file and the names of its cells and genes, each plain or .gz, as Cell
        Ranger, STARsolo, kb-python and Parse Biosciences write it, or one above it; where a folder
        holds several, one of its .mtx files. Or an AnnData object (backed or not), a scipy sparse
        matrix of any format, a 2-D ndarray. It is never modified, and the result shares no memory
        with it.
    layer
        Take this layer instead of X; "X" is X itself.
    use_raw
        Take ``.raw`` (its matrix and its genes) instead of X.
    genome
        Which genome of a 10x file or folder that holds several.
    gene_names
        Column of var that names the genes, in the place of its index. Genes without a value keep
        their name, values that several genes have get the suffixes -1, -2, ...; the former names
        are in ``var["var_names"]``.
    allow_fractional
        Take counts corrected for ambient RNA (CellBender, SoupX, DecontX), which are no longer
        whole numbers.
    allow_links
        Also read what a file stores in other files: external links, external storage and virtual
        data sets of HDF5, symbolic links out of a zarr store. Only for files that you trust: such a
        link can lead to any file of yours.

    Returns
    -------
    AnnData
        ``X``: CSR float32 (N, G), columns sorted, duplicate entries summed, no stored zeros;
        ``obs`` and ``var``: copies. Nothing else is kept. 10x symbols that repeat get the
        suffixes -1, -2, ...; the ids are in ``var["gene_ids"]``. Only features of type Gene
        Expression are kept, and what was dropped is said in a ``UserWarning``.

    Raises
    ------
    InputError
        Not found, not readable, an option that does not fit, too large for the memory that is
        available, duplicate genes, fewer than two cells or genes, or values that are not counts
        (negative, NaN, infinite, log-normalised unless `allow_fractional`). The message says
        where and what to do.

    Notes
    -----
    Cells without counts are kept. A minority of values that are not whole numbers gives a
    ``UserWarning`` and is used as it is. Matrices on disk are read in blocks: a dense one never
    exists densely in memory.
    """
    slot = Slot(
        layer,
        use_raw,
        genome,
        allow_fractional,
        allow_links=allow_links,
        gene_names=gene_names,
    )
    return read_slot(source, slot)


def read_slot(source: Any, slot: Slot) -> AnnData:
    """Read counts from where `slot` says; see `read`."""
    from anndata import AnnData

    file = read_whole(open_input(source, slot), slot)
    with warnings.catch_warnings():
        # Repeated barcodes (joined samples) do no harm here: cells are addressed by position.
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        return AnnData(X=file.counts(), obs=file.obs(), var=file.var())
