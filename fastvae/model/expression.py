"""Denoised expression of cells and of the whole data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .._files import check_new_file
from .._memory import require_memory
from .._torch import evaluating
from ..data.stores.store import Store
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
from .base import State
from .latent import EVALUATION_BATCH, LARGEST_LIBRARY, write_latent_file
from .likelihood import QualityAnswers
from .new_data import Reading
from .posterior import decode, encode
from .posterior.decode import chunks
from .posterior.importance import Reweighting, Weighting
from .posterior.noise import entropy_of
from .posterior.population import Picked, Posterior
from .predictive import PosteriorAnswers
from .selection import batch_codes, cell_rows, gene_columns

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Unpack


class Answers(PosteriorAnswers, QualityAnswers):
    """The ``get_*`` methods of `Model`, which share these arguments.

    Parameters
    ----------
    data
        New data, of any kind that `Model` takes; None is the model's own. Genes are matched by
        their ids where both have them, else by name; others are left out. Batches must be ones
        the model was trained with.
    cells
        Row numbers or a boolean mask, None for all; results are in this order.
    batch_size
        Cells per minibatch, rounded up to a multiple of 64. Nothing depends on it but memory,
        speed and the last digits.
    seed
        Of the random draws: the same question has the same answer. None draws from torch's
        generator.
    layer, use_raw
        Where the counts of `data` are: in this layer ("X" for ``X`` itself), or in ``raw``. By
        default where the model had them; data with a single matrix may have them there.
    genome
        Which genome of a 10x file that holds several; by default the model's.
    allow_fractional
        Take counts corrected for ambient RNA, which are no longer whole numbers; by default if
        the model did.
    allow_links
        Also read what files store in other files, as for `fastvae.data.read`; only for files that
        you trust.
    gene_names
        Column of ``var`` of `data` that names the genes; by default the model's, or the index of
        data without it.
    batch_key_of
        The batch column of those files of `data` in which it is not that of the model, as in
        `Model`.

    Raises
    ------
    InputError
        The model is not trained, has no data, or the data or an option does not fit.
    """

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
            See the class.
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
            Instead of draws for each cell, so many from all of `cells` together, each of a cell
            picked at random: expression over a population.
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
            Importance weights leave hardly any of the draws.

        Notes
        -----
        The importance weight of a draw z (Boyeau et al. 2023) is

        .. math::
            w(z) = \frac{\sum_a p(z)\, p(x_a \mid z) / p(x_a)}{\sum_a q(z \mid x_a)} ,

        over the cells a: the mixture of their posteriors, over what it is approximated by. As in
        scvi-tools 1.4, :math:`p(x_a \mid z)` has the library size observed in a, and decodes z as
        the batch that the draw is decoded as; :math:`p(x_a)` is that of `get_marginal_ll`.
        """
        n_samples = whole_number("n_samples", n_samples, minimum=1, maximum=MOST_DRAWS)
        return_mean = true_or_false("return_mean", return_mean)
        return_numpy = true_or_false("return_numpy", return_numpy)
        seed = seed_number(seed)
        weighting = Weighting.checked(weights, importance_weighting_kwargs)
        overall = None
        if n_samples_overall is not None:
            overall = whole_number(
                "n_samples_overall", n_samples_overall, minimum=1, maximum=MOST_DRAWS
            )
            if n_samples > 1:
                raise InputError(
                    "n_samples is of each cell and n_samples_overall of all; give one of them"
                )
        elif weighting is not None:
            raise InputError(
                "weights='importance' chooses among draws from all cells; give n_samples_overall"
            )
        own_library = isinstance(library_size, str)
        if own_library and library_size != "latent":
            raise InputError(
                f"library_size must be a number or 'latent', not {shown(library_size)}"
            )
        factor = None
        if not own_library:
            factor = real_number("library_size", library_size, above=0.0, most=LARGEST_LIBRARY)
        codes = batch_codes(transform_batch, self._setup.batch_categories, self._setup.batch_key)
        if weighting is not None and len(codes) > 1:
            raise InputError(
                f"weights='importance' needs one transform_batch, not {len(codes)}: draws are "
                "weighted by what they decode to; ask for each in turn"
            )
        columns = gene_columns(genes, self._setup.gene_names)
        store = self._store_for(data, reading)
        rows = cell_rows(cells, store.n_cells)
        n_genes = store.n_genes if columns is None else len(columns)
        separate = n_samples > 1 and not return_mean
        shape = (n_samples, len(rows), n_genes) if separate else (len(rows), n_genes)
        if overall is not None:
            shape = (overall, n_genes)
        require_memory(
            4 * int(np.prod(shape, dtype=np.int64)),
            f"normalized expression of {' x '.join(map(str, shape))} values",
            "ask for fewer genes (genes=) or for parts of the cells (cells=)",
        )
        result = np.empty(shape, dtype=np.float32)
        if overall is not None:
            rows = overall_expression(
                self,
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

    def write_latent(
        self,
        path: str | os.PathLike[str],
        data: Any = None,
        overwrite: bool = False,
        **reading: Unpack[Reading],
    ) -> np.ndarray:
        """Write a light .h5ad: the latent space in ``obsm["X_fastvae"]``, obs and var, no counts.

        Parameters
        ----------
        path
            The file; it is written whole or not at all.
        data, **reading
            See the class, and of batches `get_latent_representation`.
        overwrite
            Replace a file that is there.

        Returns
        -------
        ndarray
            The latent space, (N, n_latent) float32.
        """
        overwrite = true_or_false("overwrite", overwrite)
        target = check_new_file(file_path("path", path), overwrite=overwrite)
        store, frames = self._opened_to_encode(data, reading)
        rows = cell_rows(None, store.n_cells)
        batches = self._minibatches(store, rows, EVALUATION_BATCH)
        latent = encode.latent(self.module, batches, len(rows), give_mean=True, seed=0)
        write_latent_file(target, latent, frames.obs, frames.var)
        return latent


def overall_expression(
    model: State,
    store: Store,
    rows: np.ndarray,
    result: np.ndarray,
    *,
    genes: np.ndarray | None,
    batch_codes: Sequence[int | None],
    library_size: float | None,
    weighting: Weighting | None,
    batch_size: int,
    seed: int,
) -> np.ndarray:
    """Fill `result` (S, G') float32 with decoded draws; return the row of each draw's cell (S,).

    The other arguments are those of `decode.expression`; with `weighting`, `batch_codes` has
    one entry.
    """
    rng, code = np.random.default_rng([seed, 0]), batch_codes[0]
    picked = Picked.of(
        rows,
        None if code is None else [code],
        store.batch_codes,
        len(result),
        model._setup.options.n_latent,
        rng,
        evenly=weighting is not None,
    )
    cells = np.unique(picked.cells)
    batches = model._minibatches(store, cells, batch_size)
    with evaluating(model.module, seed=0):
        posterior = Posterior(model.module, batches, cells)
        if weighting is not None:
            again = Reweighting(store, posterior, weighting, batch_size)
            picked = again.draws(picked, rows, [seed, 3], "the cells")
        result[:] = 0.0
        for code in batch_codes:
            told = picked
            if code is not None:
                told = replace(picked, batch_codes=np.full_like(picked.batch_codes, code))
            draws = posterior.draws(told)
            for part in chunks(result.shape[1], len(result)):
                which = part if genes is None else torch.from_numpy(genes[part])
                result[:, part] += draws.scale(which).T.cpu().numpy() / np.float32(len(batch_codes))
        if library_size is not None:
            result *= np.float32(library_size)
        else:
            mean, variance = encode.library_moments(model.module, batches, len(cells))
            place = np.searchsorted(cells, picked.cells)
            noise = rng.standard_normal((len(result), 1), dtype=np.float32)
            result *= np.exp(mean[place] + np.sqrt(variance[place]) * noise)
    return picked.cells
