"""What the posterior of each cell predicts: parameters, counts and correlations of genes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._memory import require_memory
from .._torch import evaluating
from ..data import Minibatches
from ..data.stores.store import Store
from ..errors import MOST_DRAWS, InputError, one_of, real_number, true_or_false, whole_number
from .base import EVALUATION_BATCH, LARGEST_LIBRARY, State
from .correlation import KNOTS, pearson, spearman
from .new_data import READING, Reading
from .posterior.decode import decoded
from .posterior.noise import entropy_of
from .scvi_names import with_scvi_names
from .selection import batch_codes, cell_rows, gene_columns

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp
    from typing_extensions import Unpack


_FEWER = "ask for fewer genes (genes=) or for parts of the cells (cells=)"


class PosteriorAnswers(State):
    """Parameters of the likelihood, draws of counts, and correlations of genes."""

    @with_scvi_names(READING)
    def get_likelihood_parameters(
        self,
        data: Any = None,
        cells: Any = None,
        n_samples: int = 1,
        give_mean: bool = False,
        batch_size: int = EVALUATION_BATCH,
        *,
        genes: Any = None,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> dict[str, np.ndarray]:
        """Return the parameters of p(x | z, l) at draws of z (and l).

        Parameters
        ----------
        data, cells, batch_size, seed, **reading
            As in the notes of `Model`.
        n_samples
            Draws per cell.
        give_mean
            Average over them.
        genes
            Names of the genes wanted; all by default.

        Returns
        -------
        dict of ndarray
            ``"mean"``, before zero inflation; ``"dropout"``, the probability of an extra zero
            ("zinb"); ``"dispersions"``, the inverse dispersion theta ("zinb" and "nb"). Each is
            (N, genes) float32, or (n_samples, N, genes) for several draws that are not averaged.
            A dispersion that all cells share is repeated without taking memory; copy it to
            write to it.
        """
        draws, store, rows, columns = self._question(data, cells, n_samples, genes, reading)
        n_genes = store.n_genes if isinstance(columns, slice) else len(columns)
        separate = draws > 1 and not true_or_false("give_mean", give_mean)
        shape = (draws, len(rows), n_genes) if separate else (len(rows), n_genes)
        module = self.module
        shared = module.dispersion == "gene"
        names = ["mean"]
        names += ["dropout"] if module.reconstruction_loss == "zinb" else []
        names += ["dispersions"] if module.reconstruction_loss != "poisson" and not shared else []
        require_memory(
            4 * len(names) * int(np.prod(shape, dtype=np.int64)),
            f"likelihood parameters of {' x '.join(map(str, shape))} values",
            _FEWER,
        )
        found = {name: np.zeros(shape, dtype=np.float32) for name in names}
        batches = self._minibatches(store, rows, batch_size)
        with evaluating(module, seed=0):
            for part in decoded(module, batches, draws, None, entropy_of(seed)):
                values = {"mean": part.library * part.scale[:, columns]}
                if part.zi_logits is not None:
                    values["dropout"] = torch.sigmoid(part.zi_logits[:, columns])
                if "dispersions" in found:
                    values["dispersions"] = part.theta_of_cells()[:, columns]
                for name, value in values.items():
                    if separate:
                        found[name][part.sample, part.rows] = value.cpu().numpy()
                    else:
                        found[name][part.rows] += value.cpu().numpy() / np.float32(draws)
            if shared and module.reconstruction_loss != "poisson":
                theta = torch.exp(module.px_r)[columns].float().cpu().numpy()
                found["dispersions"] = np.broadcast_to(theta, shape)
        return found

    @with_scvi_names(READING)
    def posterior_predictive_sample(
        self,
        data: Any = None,
        cells: Any = None,
        transform_batch: Any = None,
        n_samples: int = 1,
        genes: Any = None,
        batch_size: int = EVALUATION_BATCH,
        *,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> sp.csr_matrix | list[sp.csr_matrix]:
        """Draw counts from the posterior predictive: z from q(z | x), then x from p(x | z).

        Parameters
        ----------
        data, cells, batch_size, seed, **reading
            As in the notes of `Model`.
        transform_batch
            Draw as if every cell were of this batch; one only, since the mean of counts from
            several is no count.
        n_samples
            Draws per cell.
        genes
            Names of the genes wanted; all by default.

        Returns
        -------
        csr_matrix or list of csr_matrix
            (N, genes) float32, whole numbers; with `n_samples` > 1 one matrix for each draw.
        """
        import scipy.sparse as sp

        codes = batch_codes(transform_batch, self._setup.batch_categories, self._setup.batch_key)
        if len(codes) != 1:
            raise InputError(
                f"transform_batch must be one batch, not {len(codes)}: the mean of counts drawn "
                "from several is no count; ask for each in turn"
            )
        draws, store, rows, columns = self._question(data, cells, n_samples, genes, reading)
        batches = self._minibatches(store, rows, batch_size)
        per_draw = 8 * int(store.lengths()[rows].sum(dtype=np.int64)) + 4 * (len(rows) + 1)
        require_memory(draws * per_draw, f"{draws:,} draws of counts like those given", _FEWER)
        parts: list[list[sp.csr_matrix]] = [[] for _ in range(draws)]
        with evaluating(self.module, seed=0):
            for part in decoded(self.module, batches, draws, codes[0], entropy_of(seed)):
                parts[part.sample].append(sp.csr_matrix(part.counts(columns).cpu().numpy()))
        drawn = [sp.vstack(matrices, format="csr") for matrices in parts]
        return drawn if draws > 1 else drawn[0]

    @with_scvi_names(READING)
    def get_feature_correlation_matrix(
        self,
        data: Any = None,
        cells: Any = None,
        n_samples: int = 10,
        batch_size: int = 64,
        rna_size_factor: float = 1000,
        transform_batch: Any = None,
        correlation_type: Literal["spearman", "pearson"] = "spearman",
        *,
        genes: Any = None,
        seed: int | None = 0,
        **reading: Unpack[Reading],
    ) -> pd.DataFrame:
        """Correlate genes over cells and draws of their denoised expression.

        A draw is the rate of the counts: from a Gamma distribution with mean `rna_size_factor`
        times the frequency at a draw of z, and inverse dispersion theta. It contains the
        uncertainty of the model, but not the noise of counting. With "poisson" there is no theta,
        and the draw is the mean.

        Parameters
        ----------
        data, cells, batch_size, seed, **reading
            As in the notes of `Model`.
        n_samples
            Draws per cell.
        rna_size_factor
            Library size of every cell.
        transform_batch
            Decode as if every cell were of this batch; for several, the mean of their matrices.
        correlation_type
            "spearman" or "pearson".
        genes
            Names of the genes wanted; all by default.

        Returns
        -------
        DataFrame
            (genes, genes) float64. NaN for a gene that does not vary.

        Notes
        -----
        The cells are read once ("pearson"), or three times for the ranks of "spearman". Memory is
        that of a few matrices of genes by genes, however many cells there are. Ranks are exact up
        to 8,192 draws in all, and to 1 in 8,192 above.
        """
        one_of("correlation_type", correlation_type, ("spearman", "pearson"))
        size = real_number("rna_size_factor", rna_size_factor, above=0.0, most=LARGEST_LIBRARY)
        codes = batch_codes(transform_batch, self._setup.batch_categories, self._setup.batch_key)
        draws, store, rows, columns = self._question(data, cells, n_samples, genes, reading)
        names = store.gene_names[columns]
        needed = (
            8 * len(names) * (3 * len(names) + (3 * KNOTS if correlation_type[0] == "s" else 0))
        )
        require_memory(needed, f"the correlation of {len(names):,} genes", "name fewer (genes=)")
        stands = rows[
            np.linspace(0, len(rows) - 1, max(1, min(len(rows), KNOTS // draws))).astype(int)
        ]
        entropy = entropy_of(seed)

        def values(which: np.ndarray, code: int | None) -> Iterable[Tensor]:
            batches: Minibatches = self._minibatches(store, which, batch_size)
            for part in decoded(self.module, batches, draws, code, entropy):
                yield part.denoised(columns, size)

        found = np.zeros((len(names), len(names)))
        with evaluating(self.module, seed=0):
            for code in codes:
                everything = partial(values, rows, code)
                if correlation_type == "pearson":
                    found += pearson(everything, len(names))
                else:
                    found += spearman(everything, partial(values, stands, code), len(names))
        import pandas as pd

        labels = names.astype(str)
        return pd.DataFrame(found / len(codes), index=labels, columns=labels)

    def _question(
        self, data: Any, cells: Any, n_samples: Any, genes: Any, reading: Reading
    ) -> tuple[int, Store, np.ndarray, Any]:
        """Return number of draws, store, rows, and an index of the genes."""
        draws = whole_number("n_samples", n_samples, minimum=1, maximum=MOST_DRAWS)
        columns = gene_columns(genes, self._setup.gene_names)
        store = self._store_for(data, reading)
        rows = cell_rows(cells, store)
        return draws, store, rows, slice(None) if columns is None else columns
