"""The rules of differential expression: thresholds, odds, descriptions, discoveries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

EPS = 1e-8
"""Keeps the Bayes factor of certainty finite: at most log(1e8) = 18.4."""

PSEUDOCOUNT_QUANTILE = 0.9
LEAST_PSEUDOCOUNT = 1e-10


def bayes_factor(probability: np.ndarray) -> np.ndarray:
    """Return the natural logarithm of the odds, between -18.4 and 18.4."""
    odds: np.ndarray = np.log(probability + EPS) - np.log(1.0 - probability + EPS)
    return odds


def choose_pseudocounts(
    max1: np.ndarray, max2: np.ndarray, low1: np.ndarray, low2: np.ndarray
) -> float:
    """Choose the pseudocount as scvi-tools 1.4 does, from genes that are hardly expressed.

    The larger, over the two populations, of the 0.9 quantile of the highest drawn frequency of
    the genes whose mean count is below the threshold; divided by the number of genes; at least
    1e-10.

    Parameters
    ----------
    max1, max2
        (G,) highest frequency of each gene over the draws.
    low1, low2
        (G,) which genes are hardly expressed.
    """
    highest = max(
        float(np.quantile(top[low], PSEUDOCOUNT_QUANTILE)) if low.any() else LEAST_PSEUDOCOUNT
        for top, low in ((max1, low1), (max2, low2))
    )
    return max(LEAST_PSEUDOCOUNT, highest / len(max1))


def choose_delta(mean_effects: np.ndarray) -> float:
    """Choose delta from the mean effects of the genes (G,).

    A mixture of three normals is fitted to them; delta is 0.6 times the mean absolute value of
    the lowest and the highest centre, at least 0.1.
    """
    centres = np.sort(_mixture_centres(np.asarray(mean_effects, dtype=np.float64)))
    return max(0.1, 0.6 * float(np.abs(centres[[0, -1]]).mean()))


def describe(effects: Tensor, levels: Sequence[float]) -> dict[str, np.ndarray]:
    """Return mean, median, standard deviation, extremes and credible intervals of each row.

    Parameters
    ----------
    effects
        (genes, P).
    levels
        Each gives the narrowest interval with that share of the values.
    """
    ordered, n_values = _sorted(effects), effects.shape[1]
    middle = ordered[:, [(n_values - 1) // 2, n_values // 2]].mean(dim=1)
    found = {
        "mean": effects.mean(dim=1),
        "median": middle,
        "std": effects.std(dim=1, correction=0),
        "min": ordered[:, 0],
        "max": ordered[:, -1],
    }
    for level in levels:
        inside = int(np.floor(level * n_values))
        width = ordered[:, inside:] - ordered[:, : n_values - inside]
        start = width.argmin(dim=1, keepdim=True)
        name = f"confidence_interval_{str(level)[:5]}"
        found[f"{name}_min"] = ordered.gather(1, start).squeeze(1)
        found[f"{name}_max"] = ordered.gather(1, start + inside).squeeze(1)
    return {name: values.cpu().numpy() for name, values in found.items()}


def discoveries(proba_de: np.ndarray, fdr_target: float) -> np.ndarray:
    """Mark the largest set of most probable genes whose expected false share is within target.

    With the genes in descending order of probability p, the first k are taken for the largest k
    with ``mean(1 - p over the first k) <= fdr_target``.

    Returns
    -------
    ndarray
        (G,) bool, in the order given.
    """
    order = np.argsort(-proba_de, kind="stable")
    expected = np.cumsum(1.0 - proba_de[order]) / np.arange(1, len(order) + 1)
    taken = np.zeros(len(order), dtype=bool)
    taken[order[: int((expected <= fdr_target).sum())]] = True
    return taken


def _sorted(values: Tensor) -> Tensor:
    """Sort each row; numpy does so several times faster than torch on a CPU."""
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))


def _mixture_centres(values: np.ndarray, n_steps: int = 200) -> np.ndarray:
    """Return the centres of a mixture of three normals, fitted by expectation-maximisation.

    The fit starts from the 5, 50 and 95 % quantiles, so nothing in it is random.
    """
    centres = np.quantile(values, [0.05, 0.5, 0.95])
    spread = np.full(3, max(float(values.var()), 1e-12))
    weights = np.full(3, 1 / 3)
    for _ in range(n_steps):
        squares = (values[:, None] - centres) ** 2 / spread
        log_part = np.log(weights) - 0.5 * (np.log(spread) + squares)
        part = np.exp(log_part - log_part.max(axis=1, keepdims=True))
        part /= part.sum(axis=1, keepdims=True)
        size = part.sum(axis=0) + 1e-12
        before, centres = centres, (part * values[:, None]).sum(axis=0) / size
        spread = (part * (values[:, None] - centres) ** 2).sum(axis=0) / size + 1e-6
        weights = size / size.sum()
        if np.abs(centres - before).max() < 1e-6:
            break
    return centres
