"""Draw the pictures of "How it works": ``python docs/draw_figures.py`` writes ``images/*.svg``.

Numbers come from ``images/passes.json`` (see ``count_passes.py``), of which each file carries the
digest, so that a test can tell whether it is up to date.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

IMAGES = Path(__file__).resolve().parent / "images"
FASTVAE, THEIRS, GREY, LIGHT = "#d55e00", "#0072b2", "#5a5a5a", "#d9d9d9"
STYLE = {
    "font.size": 10,
    "svg.hashsalt": "fastvae",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def digest() -> str:
    """Of the numbers and of this program."""
    content = (IMAGES / "passes.json").read_bytes() + Path(__file__).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def passes_figure(counts: dict[str, Any]) -> Figure:
    """Reads and writes of a training step, side by side."""
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    axes: Axes = figure.subplots()
    shades = {"matrix products": 1.0, "between them": 0.45}
    bars = [
        (f"{name}: {what}", counts[name]["parts"], what, colour)
        for name, colour in (("scvi-tools", THEIRS), ("fastvae", FASTVAE))
        for what in ("reads", "writes")
    ]
    for row, (_, parts, what, colour) in enumerate(bars):
        left = 0
        for part, shade in shades.items():
            axes.barh(row, parts[part][what], left=left, color=colour, alpha=shade, height=0.72)
            left += parts[part][what]
        axes.text(left + 1, row, str(left), va="center", color=GREY)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("passes over a matrix of cells x genes in one training step")
    handles = [Rectangle((0, 0), 1, 1, color=GREY, alpha=shade) for shade in shades.values()]
    axes.legend(handles, [*shades], frameon=False, loc="lower right")
    return figure


def _box(axes: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    height = 0.62
    shape = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0.03",
        facecolor=colour,
        edgecolor="none",
        alpha=0.9,
    )
    axes.add_patch(shape)
    axes.text(
        x + width / 2, y + height / 2, text, ha="center", va="center", color="white", size=8.5
    )


def _arrow(axes: Axes, x: float, start: float, end: float) -> None:
    axes.annotate(
        "", (x, end), (x, start), arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.1}
    )


def likelihood_figure() -> Figure:
    """What stands between the decoder's logits and the loss of a cell, before and after."""
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes: Axes = figure.subplots()
    axes.set(xlim=(0, 12.2), ylim=(-0.35, 5.1))
    axes.axis("off")
    steps = [
        "softmax",
        "x library",
        "log(θ + μ)",
        "log(μ)",
        "lgamma\n(x + θ)",
        "softplus",
        "masks",
        "sum",
    ]
    axes.text(0, 4.85, "Operation by operation", color=THEIRS, weight="bold")
    axes.add_patch(Rectangle((0, 2.75), 12.1, 0.42, color=LIGHT))
    axes.text(
        6.05,
        2.95,
        "memory: a matrix of cells x genes between any two",
        ha="center",
        va="center",
        size=8.5,
    )
    for i, text in enumerate(steps):
        x = 0.05 + 1.52 * i
        _box(axes, x, 3.95, 1.25, text, THEIRS)
        _arrow(axes, x + 0.35, 3.2, 3.93)
        _arrow(axes, x + 0.9, 3.93, 3.2)
    axes.text(0, 2.1, "One operation", color=FASTVAE, weight="bold")
    axes.add_patch(Rectangle((0, 0.0), 12.1, 0.42, color=LIGHT))
    axes.text(
        6.05, 0.2, "memory: logits and counts as they are", ha="center", va="center", size=8.5
    )
    _box(axes, 0.05, 1.2, 5.1, "forward: softmax, library,\nlikelihood and sum of a cell", FASTVAE)
    _box(
        axes,
        5.6,
        1.2,
        6.4,
        "backward: every entry computed again,\ngradients by both logits and theta",
        FASTVAE,
    )
    for x in (0.6, 1.7, 2.8, 3.9, 6.2, 7.4, 8.6):
        _arrow(axes, x, 0.45, 1.17)
    for x in (10.0, 11.2):
        _arrow(axes, x, 1.17, 0.45)
    axes.text(0.6, -0.25, "logits twice, zero inflation, counts", size=8, color=GREY)
    axes.text(5.7, -0.25, "logits, zero inflation, counts", size=8, color=GREY)
    axes.text(9.75, -0.25, "two gradients", size=8, color=GREY)
    return figure


def zeros_figure() -> Figure:
    """A count matrix: every entry as a zero first, the others written over it."""
    rng = np.random.default_rng(3)
    counts = np.where(rng.random((6, 18)) < 0.1, rng.integers(1, 6, (6, 18)), 0)
    figure = Figure(figsize=(7.6, 1.7), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = (
        "1. every entry as if it were 0: no gamma function",
        "2. nonzero entries written over it",
    )
    for number, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        axes.set(xlim=(0, 18), ylim=(6, 0), aspect="equal")
        axes.axis("off")
        axes.set_title(title, size=9.5)
        for row, column in np.ndindex(counts.shape):
            count = counts[row, column]
            shown = number == 1 and count > 0
            colour = FASTVAE if shown else LIGHT
            axes.add_patch(Rectangle((column + 0.06, row + 0.06), 0.88, 0.88, color=colour))
            if shown:
                axes.text(
                    column + 0.5,
                    row + 0.55,
                    str(count),
                    ha="center",
                    va="center",
                    color="white",
                    size=6,
                )
    return figure


def main() -> None:
    """Draw all of them."""
    counts = json.loads((IMAGES / "passes.json").read_text())
    with mpl.rc_context(STYLE):
        figures = {
            "passes": passes_figure(counts),
            "likelihood": likelihood_figure(),
            "zeros": zeros_figure(),
        }
        for name, figure in figures.items():
            about = {"Date": None, "Creator": None, "Description": f"drawn from {digest()}"}
            figure.savefig(IMAGES / f"{name}.svg", metadata=about)


if __name__ == "__main__":
    main()
