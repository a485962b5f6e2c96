"""The simulator against the analytic ZINB, and the truth it carries against what it drew."""

from __future__ import annotations

import tracemalloc

import anndata
import numpy as np
import pytest
from scipy import stats

import fastvae.datasets._zinb as zinb
from fastvae.datasets import simulate, simulated_mean
from fastvae.errors import InputError


@pytest.fixture(scope="module")
def data() -> anndata.AnnData:
    return simulate(12_000, 150, n_batches=3, n_types=4, density=0.25, seed=7)


@pytest.fixture(scope="module")
def truth(data: anndata.AnnData) -> dict[str, np.ndarray]:
    """Mean, theta, keep and the first four raw moments of every entry, (N, G) each."""
    mean = simulated_mean(data)
    theta = np.exp(data.var["log_theta"].to_numpy())
    keep = 1 - 1 / (1 + np.exp(-data.var["zi_logits"].to_numpy()))
    falling = [keep * mean]  # E[x], E[x (x - 1)], ... of the mixture
    for order in range(1, 4):
        falling.append(falling[-1] * mean * (theta + order) / theta)
    one, two, three, four = falling
    return {
        "mean": mean,
        "theta": theta,
        "keep": keep,
        "zero": 1 - keep + keep * (1 + mean / theta) ** -theta,
        "m1": one,
        "m2": two + one,
        "m3": three + 3 * two + one,
        "m4": four + 6 * three + 7 * two + one,
    }


def z_scores(observed: np.ndarray, expected: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Standardise a sum over cells of independent terms, one value per gene."""
    return (observed - expected).sum(axis=0) / np.sqrt(variance.sum(axis=0))


def assert_standard_normal(z: np.ndarray) -> None:
    assert np.abs(z).max() < 5
    assert abs(z.mean()) < 5 / np.sqrt(len(z))
    assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / len(z))


def test_gene_means_are_the_analytic_means(data, truth):
    variance = truth["m2"] - truth["m1"] ** 2
    assert_standard_normal(z_scores(data.X.toarray(), truth["m1"], variance))


def test_gene_zero_fractions_are_the_analytic_ones(data, truth):
    zero = truth["zero"]
    assert_standard_normal(z_scores(data.X.toarray() == 0, zero, zero * (1 - zero)))


def test_gene_variances_are_the_analytic_variances(data, truth):
    mean, second = truth["m1"], truth["m2"]
    variance = second - mean**2
    fourth = truth["m4"] - 4 * truth["m3"] * mean + 6 * second * mean**2 - 3 * mean**4
    squares = (data.X.toarray() - mean) ** 2
    assert_standard_normal(z_scores(squares, variance, fourth - variance**2))


@pytest.mark.parametrize("theta", [0.05, 1.0, 80.0])
@pytest.mark.parametrize("mean", [0.01, 0.4, 6.0, 900.0])
@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_distribution_at_the_extremes(mean, theta, spread):
    """Chi-square of the whole histogram; with `spread`, cells share a bound they do not need."""
    n_cells, keep = 20_000, np.array([1.0, 0.7])
    libraries = np.array([1.0, np.exp(spread)])
    library = np.tile(libraries, n_cells // 2)
    sampler = zinb.ZINBSampler.build(
        np.concatenate([library, [2 * library.max()] * 50]),  # 50 large cells widen the bins
        np.zeros(n_cells + 50, dtype=int),
        np.full((1, 2), mean),
        np.full(2, theta),
        keep,
    )
    counts = sampler.csr(seed=3, expected=n_cells)[:n_cells].toarray()
    for gene in range(2):
        for size in np.unique(libraries):
            drawn = counts[library == size, gene]
            nb = stats.nbinom(theta, theta / (theta + mean * size))
            edges = np.unique([0, *nb.ppf(np.linspace(0.02, 0.999, 40))])
            below = 1 - keep[gene] + keep[gene] * nb.cdf(edges)
            expected = np.diff([0.0, *below, 1.0]) * len(drawn)
            observed = np.bincount(np.searchsorted(edges, drawn), minlength=len(edges) + 1)
            enough = expected > 5
            if not enough.all():
                expected = np.append(expected[enough], expected[~enough].sum())
                observed = np.append(observed[enough], observed[~enough].sum())
            statistic = ((observed - expected) ** 2 / np.maximum(expected, 0.5)).sum()
            assert stats.chi2.sf(statistic, len(expected) - 1) > 1e-5, (gene, size)


def test_rare_genes_are_not_rounded_to_sixteen_bits():
    """At P(x > 0) = 1.3 / 65536 the second half of the random number decides many hits."""
    n_cells, n_genes, mean = 200_000, 100, 2e-5
    sampler = zinb.ZINBSampler.build(
        np.ones(n_cells),
        np.zeros(n_cells, dtype=int),
        np.full((1, n_genes), mean),
        np.full(n_genes, 2.0),
        np.ones(n_genes),
    )
    expected = n_cells * n_genes * (1 - (1 + mean / 2) ** -2)
    counts = sampler.csr(seed=1, expected=expected)
    assert abs(counts.nnz - expected) < 4 * np.sqrt(expected)
    assert counts.data.max() == 1
    cramped = sampler.csr(seed=1, expected=-1000)  # room for 24: the buffers must grow
    assert (counts != cramped).nnz == 0


def test_truth_is_recoverable(data, truth):
    counts = data.X.toarray()
    # The library size: the total that zero inflation leaves of it.
    share = (truth["keep"] * truth["mean"]).sum(axis=1) / truth["mean"].sum(axis=1)
    ratio = counts.sum(axis=1) / (data.obs["library"].to_numpy() * share)
    assert abs(ratio.mean() - 1) < 0.01
    # Dispersion, from E[x (x - 1)] = (1 - pi) mu^2 (1 + 1 / theta), where counts are many.
    many = truth["m1"].mean(axis=0) > 1
    excess = (counts * (counts - 1)).sum(axis=0) / (truth["keep"] * truth["mean"] ** 2).sum(axis=0)
    log_theta = -np.log(excess[many] - 1)
    error = log_theta - data.var["log_theta"].to_numpy()[many]
    assert many.sum() >= 15
    assert np.abs(error).max() < 0.35
    # The batch effect: log ratio of the batches' means after division by everything else.
    first, second = (data.obs["batch"] == name for name in ("batch_0", "batch_1"))
    share = data.varm["type_scale"].T[data.obs["cell_type"].cat.codes]
    share = share * data.obs["library"].to_numpy()[:, None]
    level = [counts[b].sum(axis=0) / share[b].sum(axis=0) for b in (first, second)]
    asked = np.log(data.varm["batch_effect"][:, 0] / data.varm["batch_effect"][:, 1])
    measured = np.log(level[0][many] / level[1][many])
    assert np.corrcoef(measured, asked[many])[0, 1] > 0.97


def test_types_are_apart_in_data_of_the_usual_shape():
    data = simulate(2000, 2000, n_types=8, n_batches=3, seed=5)
    scores = data.X @ np.log(data.varm["type_scale"])
    found = np.array([f"type_{column}" for column in scores.argmax(axis=1)])
    assert (found == data.obs["cell_type"]).mean() > 0.97


def test_means_sum_to_the_library_size_and_follow_subsets(data):
    mean = simulated_mean(data)
    np.testing.assert_allclose(mean.sum(axis=1), data.obs["library"], rtol=1e-12)
    chosen = np.array([5, 11_000, 17])
    np.testing.assert_array_equal(simulated_mean(data, chosen), mean[chosen])
    np.testing.assert_array_equal(simulated_mean(data[chosen]), mean[chosen])


@pytest.mark.parametrize(
    ("n_cells", "n_genes", "density"),
    [(4000, 300, 0.01), (4000, 300, 0.08), (1000, 1000, 0.3), (3000, 57, 0.08), (400, 4001, 0.08)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_density_is_the_asked_one(n_cells, n_genes, density, seed):
    data = simulate(n_cells, n_genes, density=density, seed=seed)
    assert data.X.nnz / np.prod(data.shape) == pytest.approx(density, rel=0.1)


def test_matrix_is_canonical_csr_of_counts(data):
    counts = data.X
    assert counts.format == "csr"
    assert counts.dtype == np.float32
    fresh = counts.copy()
    fresh.has_sorted_indices = fresh.has_canonical_format = False  # look again, not at the flags
    fresh.sum_duplicates()
    np.testing.assert_array_equal(fresh.indices, counts.indices)
    np.testing.assert_array_equal(fresh.data, counts.data)
    assert counts.data.min() == 1
    np.testing.assert_array_equal(counts.data, np.round(counts.data))


def test_seed_decides_and_the_number_of_processors_does_not(monkeypatch):
    arguments = {"n_cells": 1500, "n_genes": 2000, "n_batches": 2, "n_types": 3}
    first = simulate(**arguments, seed=4)
    monkeypatch.setattr(zinb, "processors", lambda: 5)
    again = simulate(**arguments, seed=4)
    assert (first.X != again.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert first.var.equals(again.var)
    other = simulate(**arguments, seed=5)
    assert (first.X != other.X).nnz > 0.5 * first.X.nnz


def test_every_type_and_batch_has_cells_in_random_order():
    data = simulate(12, 40, n_batches=12, n_types=11, density=0.3, seed=2)
    assert (data.obs["batch"].value_counts() == 1).all()
    assert sorted(data.obs["cell_type"].value_counts()) == [1] * 10 + [2]
    data = simulate(3000, 40, n_batches=2, n_types=5, density=0.3, seed=2)
    table = np.asarray(
        data.obs.groupby(["cell_type", "batch"], observed=False).size().unstack(), dtype=float
    )
    assert stats.chi2_contingency(table).pvalue > 1e-3  # types and batches are independent
    codes = data.obs["cell_type"].cat.codes.to_numpy(dtype=float)
    assert abs(np.corrcoef(codes[1:], codes[:-1])[0, 1]) < 0.1


def test_memory_is_little_more_than_the_result():
    simulate(1000, 2000)  # imports
    tracemalloc.start()
    data = simulate(100_000, 2000, seed=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    result = sum(part.nbytes for part in (data.X.data, data.X.indices, data.X.indptr))
    blocks = (2 * zinb.processors() + 1) * 8 * 8 * zinb.BLOCK_ENTRIES * 0.08  # 8 arrays of 8 bytes
    assert peak < 1.25 * result + blocks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 0}, "n_cells must be a whole number of at least 1, not 0"),
        ({"n_cells": 10.5}, "n_cells must be a whole number .* not 10.5"),
        ({"n_genes": -3}, "n_genes must be a whole number .* not -3"),
        ({"n_genes": "many"}, "n_genes must be a whole number .* not 'many'"),
        ({"n_batches": True}, "n_batches must be a whole number .* not True"),
        ({"n_types": 51}, "n_types is 51, but there are 50 cells"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"density": 0}, "density is 0; give a share"),
        ({"density": 8}, "density is 8; give a share"),
        ({"density": float("nan")}, "density is nan"),
        ({"density": "0.1"}, "density is '0.1'"),
        ({"density": None}, "density is None"),
        ({"density": 0.999}, "density 0.999 cannot be reached with 20 genes; give one between"),
        ({"n_genes": 10**8}, "ask for fewer types, batches or genes"),
    ],
)
def test_nonsense_is_refused_with_what_to_do(arguments, message):
    with pytest.raises(InputError, match=message):
        simulate(**{"n_cells": 50, "n_genes": 20, **arguments})


def test_too_large_a_result_is_refused(monkeypatch):
    def no_room(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(zinb.ZINBSampler, "csr", no_room)
    with pytest.raises(InputError, match=r"1,000 cells x 20 genes at density 0\.1 need 0\.0 GB"):
        simulate(1000, 20, density=0.1)


def test_mean_needs_the_truth():
    data = simulate(30, 20, density=0.2)
    with pytest.raises(InputError, match="genes were removed"):
        simulated_mean(data[:, :10])
    del data.varm["batch_effect"]
    del data.obs["library"]
    with pytest.raises(InputError, match="no batch_effect, library"):
        simulated_mean(data)
