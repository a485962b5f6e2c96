"""Simulated counts: from the distribution of the model, with known parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._memory import require_memory
from ..errors import InputError, shown, whole_number
from ._zinb import ZINBSampler, nonzero_probability

if TYPE_CHECKING:
    from anndata import AnnData

CALIBRATION_CELLS = 256
LOG_LIBRARY_RANGE = (-12.0, np.log(1e6))  # above it counts come near float32's last whole number
BYTES_PER_CELL, BYTES_PER_GENE = 200, 100  # of names, codes and library sizes
MAX_TABLE = 10**8  # types x batches x genes, 0.8 GB


def simulate(
    n_cells: int,
    n_genes: int,
    n_batches: int = 2,
    n_types: int = 5,
    density: float = 0.08,
    seed: int = 0,
) -> AnnData:
    r"""Draw zero-inflated negative binomial counts with known parameters.

    For a cell :math:`n` of type :math:`t` in batch :math:`b`, and a gene :math:`g`,

    .. math::

        \mu_{ng} = l_n \frac{s_{gt} e_{gb}}{\sum_h s_{ht} e_{hb}}, \qquad
        x_{ng} \sim \pi_g\,\delta_0 + (1 - \pi_g)\,\mathrm{NB}(\mu_{ng}, \theta_g),

    where :math:`l` is log-normal. The sampler is exact, and only nonzeros cost time: a million
    cells by 2,000 genes at the usual density take well under a minute and little more memory
    than the result (8 bytes per nonzero).

    Parameters
    ----------
    n_cells, n_genes
        The shape, both at least 1.
    n_batches, n_types
        Numbers of batches and cell types, at most `n_cells`; each has at least one cell.
    density
        Expected share of nonzero entries; the library sizes are scaled to reach it.
    seed
        The same seed gives the same data, whatever the number of processors.

    Returns
    -------
    AnnData
        ``X`` (n_cells, n_genes): CSR float32. The truth:

        - ``obs``: ``cell_type``, ``batch``, ``library`` (:math:`l_n`, the expected total before
          zero inflation);
        - ``var``: ``log_theta`` (:math:`\log\theta_g`), ``zi_logits``
          (:math:`\mathrm{logit}\,\pi_g`);
        - ``varm``: ``type_scale`` (:math:`s`, columns sum to 1), ``batch_effect`` (:math:`e`);
        - ``uns["simulation"]``: the arguments and the expected density.

    Raises
    ------
    InputError
        If an argument is out of its range, or the density cannot be reached.

    See Also
    --------
    simulated_mean : The matrix :math:`\mu` of such data.

    Examples
    --------
    >>> data = simulate(500, 100, seed=1)
    >>> data.shape
    (500, 100)
    """
    n_cells = whole_number("n_cells", n_cells, minimum=1)
    n_genes = whole_number("n_genes", n_genes, minimum=1)
    n_batches = _groups("n_batches", n_batches, n_cells)
    n_types = _groups("n_types", n_types, n_cells)
    seed = whole_number("seed", seed, minimum=0)
    if not isinstance(density, (int, float, np.floating)) or not 0 < density < 1:
        raise InputError(f"density is {shown(density)}; give a share of nonzeros between 0 and 1")
    require_memory(
        BYTES_PER_CELL * n_cells + BYTES_PER_GENE * n_genes,
        f"simulating n_cells={n_cells:,} x n_genes={n_genes:,}",
        "ask for fewer",
    )
    if n_types * n_batches * n_genes > MAX_TABLE:
        raise InputError(
            f"n_types * n_batches * n_genes is {n_types * n_batches * n_genes:,}, above "
            f"{MAX_TABLE:,}; ask for fewer types, batches or genes"
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    scale = _type_scale(rng, n_genes, n_types)
    effect = np.exp(rng.normal(0.0, 0.3, (n_genes, n_batches)))
    log_theta = rng.normal(np.log(2.0), 0.6, n_genes)
    zi_logits = rng.normal(-3.0, 0.7, n_genes)
    cell_type = _assign(rng, n_cells, n_types, evenness=5.0)
    batch = _assign(rng, n_cells, n_batches, evenness=20.0)
    log_library = rng.normal(0.0, 0.15, n_batches)[batch] + rng.normal(0.0, 0.35, n_cells)

    rate = _rates(scale, effect)
    stratum = cell_type * n_batches + batch
    theta, keep = np.exp(log_theta), 1 / (1 + np.exp(zi_logits))
    shift, expected = _calibrate(density, log_library, stratum, rate, theta, keep)
    library = np.exp(log_library + shift)
    sampler = ZINBSampler.build(library, stratum, rate, theta, keep)
    try:
        counts = sampler.csr(seed, expected * n_cells * n_genes)
    except MemoryError as error:
        needed = expected * n_cells * n_genes * 8 / 1e9
        raise InputError(
            f"{n_cells:,} cells x {n_genes:,} genes at density {density:g} need {needed:.1f} GB, "
            "more than there is; ask for fewer cells or a lower density"
        ) from error
    return _annotate(
        counts,
        obs={"cell_type": cell_type, "batch": batch, "library": library},
        var={"log_theta": log_theta, "zi_logits": zi_logits},
        varm={"type_scale": scale, "batch_effect": effect},
        simulation={"seed": seed, "density": float(density), "expected_density": expected},
    )


def simulated_mean(data: AnnData, cells: Any = None) -> np.ndarray:
    r"""Return the true negative binomial means of cells that `simulate` made.

    Parameters
    ----------
    data
        What `simulate` returned, or a subset of its cells (not of its genes).
    cells
        Positions of the cells wanted, anything that indexes an array; all by default.

    Returns
    -------
    numpy.ndarray
        :math:`\mu` (cells, genes), float64, dense: the mean before zero inflation.

    Raises
    ------
    InputError
        If `data` does not carry the truth.
    """
    if not hasattr(data, "obs") or not hasattr(data, "varm"):
        raise InputError(f"data must be what fastvae.datasets.simulate made, not {shown(data)}")
    needed = {"cell_type", "batch", "library"} - set(data.obs.columns)
    needed |= {"type_scale", "batch_effect"} - set(data.varm.keys())
    if needed:
        raise InputError(
            f"the data has no {', '.join(sorted(needed))}; pass what fastvae.datasets.simulate made"
        )
    scale, effect = np.asarray(data.varm["type_scale"]), np.asarray(data.varm["batch_effect"])
    if not np.allclose(scale.sum(axis=0), 1.0):
        raise InputError("genes were removed from the simulated data; subset cells only")
    obs = data.obs
    if cells is not None:
        try:
            obs = obs.iloc[np.atleast_1d(np.arange(len(obs))[cells])]
        except Exception as error:  # NumPy raises many kinds
            raise InputError(
                f"cells must be positions of cells, 0 to {len(obs) - 1}, not {shown(cells)}"
            ) from error
    cell_type = np.array([int(name.removeprefix("type_")) for name in obs["cell_type"]], dtype=int)
    batch = np.array([int(name.removeprefix("batch_")) for name in obs["batch"]], dtype=int)
    rate = _rates(scale, effect)
    return obs["library"].to_numpy()[:, None] * rate[cell_type * effect.shape[1] + batch]


def _groups(name: str, value: Any, n_cells: int) -> int:
    number = whole_number(name, value, minimum=1)
    if number > n_cells:
        raise InputError(
            f"{name} is {shown(number)}, but there are {n_cells} cells; ask for at most that"
        )
    return number


def _type_scale(rng: np.random.Generator, n_genes: int, n_types: int) -> np.ndarray:
    """Return the share of every gene in each type (G, T); about one gene in seven is specific."""
    log_scale = np.tile(rng.normal(0.0, 1.5, n_genes)[:, None], (1, n_types))
    specific = rng.random((n_genes, n_types)) < 0.15
    log_scale += specific * rng.normal(0.0, 1.2, (n_genes, n_types))
    scale = np.exp(log_scale)
    return scale / scale.sum(axis=0)


def _assign(rng: np.random.Generator, n_cells: int, n_groups: int, evenness: float) -> np.ndarray:
    """Return a group for every cell, in random order; no group is empty."""
    shares = rng.dirichlet(np.full(n_groups, evenness))
    sizes = 1 + rng.multinomial(n_cells - n_groups, shares)
    return rng.permutation(np.repeat(np.arange(n_groups), sizes))


def _rates(scale: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """Return the normalised rates (T * B, G), row t * B + b for type t in batch b."""
    rate = (scale.T[:, None, :] * effect.T[None, :, :]).reshape(-1, len(scale))
    return rate / rate.sum(axis=1, keepdims=True)


def _calibrate(
    density: float,
    log_library: np.ndarray,
    stratum: np.ndarray,
    rate: np.ndarray,
    theta: np.ndarray,
    keep: np.ndarray,
) -> tuple[float, float]:
    """Return the shift of log library that gives `density`, and the density expected with it."""
    from scipy.optimize import brentq

    # Evenly spaced ranks of library size stand for all cells far better than random ones.
    ranks = np.linspace(0, len(log_library) - 1, min(len(log_library), CALIBRATION_CELLS))
    chosen = np.argsort(log_library, kind="stable")[np.round(ranks).astype(np.int64)]
    library, rates = np.exp(log_library[chosen])[:, None], rate[stratum[chosen]]

    def expected(shift: float) -> float:
        return float((keep * nonzero_probability(np.exp(shift) * library * rates, theta)).mean())

    low, high = LOG_LIBRARY_RANGE
    least, most = expected(low), expected(high)
    if not least < density < most:
        raise InputError(
            f"density {density:g} cannot be reached with {rate.shape[1]} genes; "
            f"give one between {least:.2g} and {most:.2g}"
        )
    shift = brentq(lambda value: expected(value) - density, low, high, xtol=1e-3)
    return float(shift), expected(shift)


def _annotate(
    counts: Any,
    *,
    obs: dict[str, np.ndarray],
    var: dict[str, np.ndarray],
    varm: dict[str, np.ndarray],
    simulation: dict[str, Any],
) -> AnnData:
    import pandas as pd
    from anndata import AnnData

    n_cells, n_genes = counts.shape
    n_types, n_batches = (varm[key].shape[1] for key in ("type_scale", "batch_effect"))
    cells = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(
                obs["cell_type"], [f"type_{number}" for number in range(n_types)]
            ),
            "batch": pd.Categorical.from_codes(
                obs["batch"], [f"batch_{number}" for number in range(n_batches)]
            ),
            "library": obs["library"],
        },
        index=pd.Index([f"cell_{number}" for number in range(n_cells)]),
    )
    genes = pd.DataFrame(var, index=pd.Index([f"gene_{number}" for number in range(n_genes)]))
    return AnnData(counts, obs=cells, var=genes, varm=varm, uns={"simulation": simulation})
