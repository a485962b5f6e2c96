"""Measures of mixing, on points whose neighbours are known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from fastvae.errors import InputError
from fastvae.report.neighbours import (
    chance_share,
    neighbours,
    principal_components,
    same_share,
    vote_accuracy,
)


def test_neighbours_are_the_nearest_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvae.report.neighbours._CHUNK", 7)
    points = np.random.default_rng(0).normal(size=(40, 3))
    distance = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(neighbours(points, 5), np.argsort(distance, axis=1)[:, :5])


@pytest.mark.parametrize("k", [0, 40])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(InputError, match=f"between 1 and 39 for 40 cells, not {k}"):
        neighbours(np.zeros((40, 2)), k)


def test_shares_and_votes() -> None:
    nearest = np.array([[1, 2], [0, 2], [3, 1], [2, 1]])
    codes = np.array([0, 0, 1, 1])
    # Same code: 1 of 2, 1 of 2, 1 of 2, 1 of 2.
    assert same_share(nearest, codes) == 0.5
    # Each cell's votes are one to one; ties go to code 0, which is right for two cells.
    assert vote_accuracy(nearest, codes) == 0.5
    assert chance_share(np.array([0, 0, 0, 1])) == pytest.approx(6 / 12)


def test_chance_is_the_share_among_random_neighbours() -> None:
    rng = np.random.default_rng(0)
    codes = rng.choice(3, size=500, p=[0.6, 0.3, 0.1])
    nearest = neighbours(rng.normal(size=(500, 4)), 20)
    assert same_share(nearest, codes) == pytest.approx(chance_share(codes), abs=0.02)


def test_principal_components_are_those_of_the_dense_matrix() -> None:
    counts = sp.csr_matrix(np.random.default_rng(1).poisson(0.7, size=(30, 12)).astype(np.float32))
    counts = sp.csr_matrix(sp.diags_array(np.arange(30) != 4, dtype=np.float32) @ counts)
    dense = counts.toarray().astype(np.float64)
    logs = np.log1p(1e4 * dense / np.maximum(dense.sum(1, keepdims=True), 1))
    left, values, _ = np.linalg.svd(logs - logs.mean(0), full_matrices=False)
    expected = (left * values)[:, :5]
    found = principal_components(counts, 5)
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, rtol=1e-8, atol=1e-8)
    assert principal_components(counts, 30).shape == (30, 11)
