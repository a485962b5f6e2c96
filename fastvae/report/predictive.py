"""Counts as measured beside counts drawn from the model: library sizes, zeros, variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .observed import CountMoments, count_moments, moments_from

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..model.model import Model


MEASURED, DRAWN = "#0072B2", "#D55E00"
SIZE = (4.4, 3.7)
RARE = 0.01
"""Genes with a lower mean have too few counts for a variance."""


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """Moments of the counts of some cells, as measured and as drawn."""

    measured: CountMoments
    drawn: CountMoments

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return rows of a table: what, measured, drawn, what is good."""
        return [
            (
                "Median counts of a cell",
                f"{np.median(self.measured.library):,.0f}",
                f"{np.median(self.drawn.library):,.0f}",
                "alike",
            ),
            (
                "Entries that are zero, %",
                f"{100 * self.measured.zeros.mean():.1f}",
                f"{100 * self.drawn.zeros.mean():.1f}",
                "alike",
            ),
            (
                "Difference of the share of zeros, mean over genes, percentage points",
                "",
                f"{100 * np.abs(self.measured.zeros - self.drawn.zeros).mean():.2f}",
                "near 0",
            ),
            (
                "Drawn mean / measured, middle half of the genes",
                "",
                _middle(self.drawn.mean, self.measured.mean, self.measured.mean),
                "around 1",
            ),
            (
                "Drawn variance / measured, middle half of the genes",
                "",
                _middle(self.drawn.variance, self.measured.variance, self.measured.mean),
                "around 1",
            ),
        ]


def _middle(drawn: np.ndarray, measured: np.ndarray, mean: np.ndarray) -> str:
    common = (mean >= RARE) & (measured > 0)
    if not common.any():
        return "too few counts"
    low, middle, high = np.quantile(drawn[common] / measured[common], [0.25, 0.5, 0.75])
    return f"{low:.2f} to {high:.2f}, median {middle:.2f}"


def predictive_check(model: Model, cells: np.ndarray, seed: int) -> PredictiveCheck:
    """Draw the counts of some cells once from their posterior predictive distribution.

    Raises
    ------
    InputError
        The model has no data or is not trained.
    """
    drawn = model.posterior_predictive_sample(cells=cells, seed=seed)
    assert not isinstance(drawn, list)
    x = drawn.astype(np.float64)
    moments = moments_from(
        np.asarray(x.sum(axis=0)).ravel(),
        np.asarray(x.multiply(x).sum(axis=0)).ravel(),
        np.bincount(x.indices, x.data > 0, minlength=x.shape[1]),
        np.asarray(x.sum(axis=1)).ravel(),
    )
    return PredictiveCheck(count_moments(model, cells), moments)


def library_figure(check: PredictiveCheck) -> Figure:
    """Return histograms of the counts of a cell."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    both = [np.maximum(part.library, 1.0) for part in (check.measured, check.drawn)]
    low, high = min(map(np.min, both)), max(map(np.max, both))
    edges = np.geomspace(low, max(high, 1.1 * low), 40).tolist()
    kinds = ((MEASURED, "measured"), (DRAWN, "drawn"))
    for values, (colour, name) in zip(both, kinds, strict=True):
        axis.hist(values, edges, histtype="stepfilled", color=colour, alpha=0.25)
        axis.hist(values, edges, histtype="step", color=colour, linewidth=1.4, label=name)
    axis.set_xscale("log")
    axis.set_xlabel("counts of a cell")
    axis.set_ylabel("cells")
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def zeros_figure(check: PredictiveCheck) -> Figure:
    """Return the share of zeros of each gene, drawn against measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 100], [0, 100], color="0.6", linewidth=1, zorder=0)
    axis.scatter(
        100 * check.measured.zeros,
        100 * check.drawn.zeros,
        s=5,
        linewidths=0,
        color=MEASURED,
        alpha=0.5,
        rasterized=True,
    )
    axis.set_xlabel("zeros as measured, % of the cells")
    axis.set_ylabel("zeros as drawn, % of the cells")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def variance_figure(check: PredictiveCheck) -> Figure:
    """Return variance against mean of each gene, measured and drawn, beside the Poisson's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    ends = []
    kinds = ((check.measured, MEASURED, "measured"), (check.drawn, DRAWN, "drawn"))
    for part, colour, name in kinds:
        there = (part.mean > 0) & (part.variance > 0)
        mean, variance = part.mean[there], part.variance[there]
        axis.scatter(
            mean,
            variance,
            s=5,
            linewidths=0,
            color=colour,
            alpha=0.45,
            label=name,
            rasterized=True,
        )
        ends += [mean.min(), mean.max()] if len(mean) else []
    ends = ends or [0.1, 1.0]
    line = [min(ends), max(ends)]
    axis.plot(line, line, color="0.4", linewidth=1, label="Poisson: variance = mean")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("mean count of a gene")
    axis.set_ylabel("variance")
    axis.legend(frameon=False, fontsize=9, markerscale=3)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
