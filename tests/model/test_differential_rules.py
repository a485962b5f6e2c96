"""The rules of differential expression against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastvae.model.differential.rules import (
    bayes_factor,
    choose_delta,
    choose_pseudocounts,
    describe,
    discoveries,
)


@pytest.mark.parametrize("target", [0.0, 0.01, 0.05, 0.3, 0.99])
def test_discoveries_are_the_largest_set_within_the_target(target: float) -> None:
    rng = np.random.default_rng(int(100 * target))
    for _ in range(30):
        probability = rng.beta(2.0, rng.uniform(0.05, 2.0), 40)
        probability[rng.random(40) < 0.2] = 1.0
        found = discoveries(probability, target)
        ordered = np.sort(probability)[::-1]
        sizes = [k for k in range(1, 41) if np.mean(1 - ordered[:k]) <= target]
        assert found.sum() == max(sizes, default=0)
        assert probability[found].min(initial=2) >= probability[~found].max(initial=-1)


def test_expected_share_of_false_discoveries_is_the_real_one() -> None:
    """Genes that are differential with the probability stated: the share of errors is right."""
    rng = np.random.default_rng(0)
    probability = rng.beta(1.0, 0.3, 200_000)
    truth = rng.random(200_000) < probability
    for target in (0.02, 0.05, 0.2):
        taken = discoveries(probability, target)
        assert np.mean(~truth[taken]) == pytest.approx(target, rel=0.05)


def test_pseudocounts() -> None:
    rng = np.random.default_rng(1)
    top1, top2 = rng.random((2, 50)) * 1e-3
    low1, low2 = rng.random((2, 50)) < 0.3
    expected = max(np.quantile(top1[low1], 0.9), np.quantile(top2[low2], 0.9)) / 50
    assert choose_pseudocounts(top1, top2, low1, low2) == pytest.approx(expected, rel=1e-12)
    none = np.zeros(50, bool)
    expected = np.quantile(top2[low2], 0.9) / 50
    assert choose_pseudocounts(top1, top2, none, low2) == pytest.approx(expected, rel=1e-12)
    assert choose_pseudocounts(top1, top2, none, none) == 1e-10


def test_delta_from_three_kinds_of_genes() -> None:
    rng = np.random.default_rng(2)
    effects = np.concatenate(
        [rng.normal(0, 0.05, 600), rng.normal(-1.5, 0.2, 150), rng.normal(2.5, 0.2, 150)]
    )
    assert choose_delta(effects) == pytest.approx(0.6 * (1.5 + 2.5) / 2, rel=0.03)
    assert choose_delta(rng.normal(0, 1e-3, 500)) == 0.1
    assert choose_delta(np.zeros(10)) == 0.1


@pytest.mark.parametrize("n_values", [1, 2, 101, 400])
def test_description(n_values: int) -> None:
    values = np.random.default_rng(3).gamma(2.0, size=(4, n_values))
    levels = [0.5, 0.9] if n_values > 2 else []
    found = describe(torch.from_numpy(values), levels)
    for name in ("mean", "median", "std", "min", "max"):
        np.testing.assert_allclose(found[name], getattr(np, name)(values, axis=1), rtol=1e-12)
    for level in levels:
        inside = int(level * n_values)
        for row, low, high in zip(
            np.sort(values, axis=1),
            found[f"confidence_interval_{level}_min"],
            found[f"confidence_interval_{level}_max"],
            strict=True,
        ):
            widths = [row[k + inside] - row[k] for k in range(n_values - inside)]
            assert high - low == pytest.approx(min(widths), rel=1e-12)
            assert ((row >= low) & (row <= high)).mean() == pytest.approx(level, abs=1.5 / n_values)


def test_bayes_factor_is_finite_for_certainty() -> None:
    found = bayes_factor(np.array([0.0, 0.5, 0.9, 1.0]))
    np.testing.assert_allclose(found, [-18.42068, 0.0, np.log(9), 18.42068], rtol=1e-5)
