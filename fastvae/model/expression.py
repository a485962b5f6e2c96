"""Denoised expression of cells, in memory or written to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .._memory import require_memory
from .._status import PercentLines
from ..data.dense_output import DenseMatrix, check_dense_output, dense_output
from ..data.storable import storable
from ..errors import (
    MOST_DRAWS,
    InputError,
    file_path,
    real_number,
    seed_number,
    shown,
    true_or_false,
    whole_number,
)
from .base import EVALUATION_BATCH, LARGEST_LIBRARY, State
from .new_data import READING, Reading
from .posterior import decode
from .posterior.importance import Weighting
from .posterior.noise import entropy_of
from .posterior.overall import overall_expression
from .scvi_names import with_scvi_names
from .selection import batch_codes, cell_rows, gene_columns, is_name

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Unpack


class ExpressionAnswers(State):
    """Denoised expression of cells and of populations."""

    @with_scvi_names(READING)
    def get_normalized_expression(
        self,
        data: Any = None,
        cells: Any = None,
        genes: Any = None,
        transform_batch: Any = None,
        n_samples: int = 1,
        library_size: float | Literal["latent"] = 1,
        return_mean: bool = True,
        batch_size: int = EVALUATION_BATCH,
        *,
        return_numpy: bool = False,
        n_samples_overall: int | None = None,
        weights: Literal["uniform", "importance"] = "uniform",
        importance_weighting_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> pd.DataFrame | np.ndarray:
        r"""Return denoised expression: what the decoder makes of a draw of z.

        Parameters
        ----------
        data, cells, batch_size, seed, **reading
            As in the notes of `Model`.
        genes
            Names of the genes wanted; all by default.
        transform_batch
            Decode as if every cell were of this batch; for several, average over them. None is
            each cell's own batch.
        n_samples
            Draws of z per cell. One is unbiased but varies with the seed as much as the posterior
            is wide; the average of S draws varies less by the square root of S, and 10 to 25 are
            usual for figures.
        library_size
            Frequencies (over all genes they sum to 1 in each cell) are multiplied by it;
            "latent" is the cell's own library size, which gives expected counts.
        return_mean
            Average over the draws.
        return_numpy
            Return an array instead of a data frame.
        n_samples_overall
            Number of draws from all of `cells` together, each from a cell picked at random,
            instead of draws for each cell: expression over a population.
        weights
            Of these draws. "importance" chooses them again, with replacement, by weights that
            bring them nearer to the posterior; see the notes.
        importance_weighting_kwargs
            Of these weights. ``max_cells``: cells they are judged by (1,024 at random of more).
            ``n_mc_samples``: draws for the estimate of each :math:`p(x_a)` (500).
            ``truncation``: cut weights off at :math:`\sqrt{S}` times their mean (Ionides 2008).

        Returns
        -------
        DataFrame or ndarray
            (N, genes) float32. With `n_samples` > 1 and ``return_mean=False`` an array
            (n_samples, N, genes). With `n_samples_overall` (n_samples_overall, genes), the rows
            named by the cells drawn from.

        Raises
        ------
        InputError
            Also if the result would not fit into the memory that is free.

        Warns
        -----
        UserWarning
            A few draws have nearly all the weight.

        Notes
        -----
        The importance weight of a draw z (Boyeau et al. 2023) is

        .. math::
            w(z) = \frac{\sum_a p(z)\, p(x_a \mid z) / p(x_a)}{\sum_a q(z \mid x_a)} ,

        over the cells a: the mixture of their posteriors over the mixture of their
        approximations. As in scvi-tools 1.4, :math:`p(x_a \mid z)` has the library size observed
        in a, and decodes z as the batch that the draw is decoded as; :math:`p(x_a)` is that of
        `get_marginal_ll`.
        """
        return_mean = true_or_false("return_mean", return_mean)
        return_numpy = true_or_false("return_numpy", return_numpy)
        seed = seed_number(seed)
        weighting = Weighting.checked(weights, importance_weighting_kwargs)
        n_samples, overall = _numbers_of_draws(n_samples, n_samples_overall, weighting)
        factor = _library_factor(library_size)
        codes = batch_codes(transform_batch, self._setup.batch_categories, self._setup.batch_key)
        if weighting is not None and len(codes) > 1:
            raise InputError(
                f"weights='importance' needs one transform_batch, not {len(codes)}: draws are "
                "weighted by what they decode to; ask for each in turn"
            )
        columns = gene_columns(genes, self._setup.gene_names)
        store = self._store_for(data, reading)
        rows = cell_rows(cells, store)
        self._check_trained()
        n_genes = store.n_genes if columns is None else len(columns)
        separate = n_samples > 1 and not return_mean
        if overall is not None:
            result = _room_for(overall, n_genes)
            rows = overall_expression(
                self.module,
                store,
                rows,
                result,
                genes=columns,
                batch_codes=codes,
                library_size=factor,
                weighting=weighting,
                batch_size=batch_size,
                seed=entropy_of(seed),
            )
        else:
            result = _room_for(*([n_samples] if separate else []), len(rows), n_genes)
            decode.expression(
                self.module,
                self._minibatches(store, rows, batch_size),
                result,
                n_samples=n_samples,
                genes=None if columns is None else torch.from_numpy(columns),
                batch_codes=codes,
                library_size=factor,
                seed=seed,
            )
        if separate or return_numpy:
            return result
        import pandas as pd

        names = store.gene_names if columns is None else store.gene_names[columns]
        return pd.DataFrame(result, index=store.cell_names[rows], columns=names, copy=False)

    @with_scvi_names(READING)
    def write_normalized_expression(
        self,
        path: str | os.PathLike[str],
        data: Any = None,
        cells: Any = None,
        genes: Any = None,
        transform_batch: Any = None,
        n_samples: int = 1,
        library_size: float | Literal["latent"] = 1,
        batch_size: int = EVALUATION_BATCH,
        *,
        overwrite: bool = False,
        progress: bool = False,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> tuple[int, int]:
        """Write denoised expression to a file, a minibatch at a time: memory stays small.

        Parameters
        ----------
        path
            ``.h5ad`` or ``.zarr``: an AnnData with a dense float32 ``X`` (N, genes) and obs.
            ``.mtx``: Matrix Market, genes by cells as 10x has them, with NAME_genes.tsv and
            NAME_barcodes.tsv beside it; it is text, and five times as large. Written whole or not
            at all.
        data, cells, genes, transform_batch, n_samples, library_size, batch_size, seed, **reading
            As in `get_normalized_expression`, whose values these are.
        overwrite
            Replace what is there.
        progress
            Say every few seconds how much is done.

        Returns
        -------
        tuple of int
            Numbers of cells and genes.

        Raises
        ------
        InputError
            Also if the output is there, or the disk is full.
        """
        n_samples = whole_number("n_samples", n_samples, minimum=1, maximum=MOST_DRAWS)
        factor, seed = _library_factor(library_size), seed_number(seed)
        target = check_dense_output(
            file_path("path", path), overwrite=true_or_false("overwrite", overwrite)
        )
        report = PercentLines(true_or_false("progress", progress))
        codes = batch_codes(transform_batch, self._setup.batch_categories, self._setup.batch_key)
        columns = gene_columns(genes, self._setup.gene_names)
        store, frames = self._opened(data, reading)
        rows = cell_rows(cells, store)
        batches = self._minibatches(store, rows, batch_size)
        matrix = DenseMatrix(
            storable(frames.obs.iloc[rows], "obs"),
            self._genes_table(columns),
            _about(n_samples, factor, transform_batch),
        )
        blocks = decode.mean_expression(
            self.module,
            batches,
            n_samples=n_samples,
            genes=None if columns is None else torch.from_numpy(columns),
            batch_codes=codes,
            library_size=factor,
            seed=seed,
        )
        done = 0
        with dense_output(target, matrix) as append:
            for values in blocks:
                append(values)
                done += len(values)
                report("writing", done, len(rows))
        return matrix.shape

    def _genes_table(self, columns: np.ndarray | None) -> pd.DataFrame:
        """Return var of an output: names, and stable ids where the model knows them."""
        import pandas as pd

        names = np.array(self._setup.gene_names, dtype=object)
        ids = np.array(self._setup.gene_ids, dtype=object)
        if columns is not None:
            names, ids = names[columns], ids[columns] if len(ids) else ids
        table = pd.DataFrame(index=pd.Index(names, dtype=object))
        if any(ids):
            table["gene_ids"] = ids
        return table


def _about(n_samples: int, factor: float | None, transform_batch: Any) -> dict[str, Any]:
    """Return how values were made, as .h5ad files and zarr stores hold it."""
    size = "latent" if factor is None else factor
    about: dict[str, Any] = {"n_samples": n_samples, "library_size": size}
    if transform_batch is not None:
        named = [transform_batch] if is_name(transform_batch) else list(transform_batch)
        about["transform_batch"] = np.array([str(name) for name in named], dtype=object)
    return about


def _numbers_of_draws(
    n_samples: Any, n_samples_overall: Any, weighting: Weighting | None
) -> tuple[int, int | None]:
    """Return the draws of each cell, and those of all cells together where these are wanted."""
    n_samples = whole_number("n_samples", n_samples, minimum=1, maximum=MOST_DRAWS)
    if n_samples_overall is None:
        if weighting is not None:
            raise InputError(
                "weights='importance' chooses among draws from all cells; give n_samples_overall"
            )
        return n_samples, None
    overall = whole_number("n_samples_overall", n_samples_overall, minimum=1, maximum=MOST_DRAWS)
    if n_samples > 1:
        raise InputError("n_samples is of each cell and n_samples_overall of all; give one of them")
    return n_samples, overall


def _library_factor(library_size: Any) -> float | None:
    """Return what frequencies are multiplied by; None is the library size of each cell."""
    if not isinstance(library_size, str):
        return real_number("library_size", library_size, above=0.0, most=LARGEST_LIBRARY)
    if library_size != "latent":
        raise InputError(f"library_size must be a number or 'latent', not {shown(library_size)}")
    return None


def _room_for(*shape: int) -> np.ndarray:
    """Return an array for the result, if there is memory for it."""
    require_memory(
        4 * int(np.prod(shape, dtype=np.int64)),
        f"normalized expression of {' x '.join(map(str, shape))} values",
        "ask for fewer genes (genes=) or for parts of the cells (cells=)",
    )
    return np.empty(shape, dtype=np.float32)
