"""Plots of the results: first their numbers as plain data, then one drawer for all of them.

A figure's file carries a digest of its numbers, so that whether it is up to date can be told
without drawing it: two versions of matplotlib do not write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from .tables import Results, of

Series = dict[str, list[tuple[float, float]]]
Panel = dict[str, Any]
PROVIDERS = {
    "fastvae": "#d55e00",
    "scvi-tools": "#0072b2",
    "AnnDataLoader": "#0072b2",
    "annbatch": "#009e73",
    "textbook": "#c7c7c7",
    "legacy": "#cc79a7",
}
STYLES = ["-", "--", ":", "-."]


def panel(title: str, x: str, y: str, series: Series, **options: Any) -> Panel:
    return {"title": title, "x": x, "y": y, "series": series, **options}


def step_speed(results: Results, along: str, fixed: dict[str, int]) -> Panel | None:
    """Training steps: cells per second along one of the two sizes."""
    result = results.get("step")
    if result is None:
        return None
    series: Series = {}
    for row in of(result.content["rows"], family="zinb", **fixed):
        for name, ms in row["milliseconds"].items():
            series.setdefault(name, []).append((row[along], row["cells"] / ms * 1e3))
    kept = ", ".join(f"{v:,} {'genes' if k == 'genes' else 'cells'}" for k, v in fixed.items())
    return panel(f"training step, {kept}", along_name(along), "cells/s", series)


def along_name(along: str) -> str:
    return "cells in a minibatch" if along == "cells" else "genes"


def against_batch_size(results: Results) -> list[Panel]:
    panels = [step_speed(results, "cells", {"genes": 2000})]
    if result := results.get("loading"):
        for genes, loaders in result.content["times"].items():
            series: Series = {
                name: [(int(size), 128e3 / ms) for size, ms in times.items()]
                for name, times in loaders.items()
            }
            title = f"loading, {int(genes):,} genes"
            panels.append(panel(title, along_name("cells"), "cells/s", series))
    return [p for p in panels if p]


def against_genes(results: Results) -> list[Panel]:
    panels = [step_speed(results, "genes", {"cells": 128})]
    training: Series = {}
    for name, result in results.items():
        if name.startswith("cpu_training"):
            for system, speed in result.content["cells_per_second"].items():
                training.setdefault(system, []).append((result.content["genes"], speed))
    if training:
        panels.append(panel("whole training, defaults", "genes", "cells/s", training))
    if loading := results.get("loading"):
        loaders: Series = {}
        for genes, found in loading.content["times"].items():
            for name, ms in found.items():
                loaders.setdefault(name, []).append((int(genes), 128e3 / ms["128"]))
        panels.append(panel("loading, minibatches of 128", "genes", "cells/s", loaders))
    return [p for p in panels if p]


def against_cells(results: Results) -> list[Panel]:
    result = results.get("streaming")
    if result is None:
        return []
    series: Series = {}
    for name, entry in result.content["steps"].items():
        kind, cells = name.split()
        series.setdefault(f"fastvae {kind}", []).append((int(cells), 128e3 / entry["ms_per_step"]))
    genes = result.content["genes"]
    title = f"training from disk and memory, {genes:,} genes"
    return [panel(title, "cells in the data set", "cells/s", series, y_scale="linear")]


def memory(results: Results) -> list[Panel]:
    panels = []
    if result := results.get("step"):
        series: Series = {}
        for row in of(result.content["rows"], family="zinb", cells=128):
            for name, mb in (row.get("peak_mb") or {}).items():
                series.setdefault(name, []).append((row["genes"], max(mb, 0.1)))
        if series:
            title = "peak of a training step, 128 cells"
            panels.append(panel(title, "genes", "MB beyond weights and data", series))
    for name, result in results.items():
        if not name.startswith("differential_expression") or not result.content["scale"]:
            continue
        series = {}
        for row in result.content["scale"]:
            for name in ("fastvae", "scvi-tools"):
                megabytes = row[name]["more_than_before_bytes"] / 1e6
                series.setdefault(name, []).append((row["cells"], megabytes))
        title = "differential expression, all types"
        panels.append(panel(title, "cells", "MB above the start", series))
    return panels


def time_to_quality(results: Results) -> list[Panel]:
    panels = []
    for name, result in results.items():
        if not name.startswith("time_to_quality"):
            continue
        found = result.content
        series: Series = {}
        for system, curve in found["curves"].items():
            epoch = median(b - a for a, b in pairwise([0.0, *curve["seconds"]]))
            values = enumerate(curve["validation_elbo"], start=1)
            series[system] = [(epoch * i, value) for i, value in values]
        title = f"{found['cells']:,} cells x {found['genes']:,} genes"
        y = "negative ELBO per validation cell"
        first = max(max(v for _, v in points[1:]) for points in series.values())
        least = min(v for points in series.values() for _, v in points)
        limits = [least - 0.04 * (first - least), first]
        panels.append(
            panel(title, "seconds of training", y, series, y_scale="linear", y_limits=limits)
        )
        panels[-1]["mark"] = found["marks"]["lowest"]
    return panels


def accuracy(results: Results) -> list[Panel]:
    result = results.get("accuracy")
    if result is None:
        return []
    panels = []
    quantities = {"log_p": "log NB", "log_theta": "gradient by log theta"}
    for quantity, title in quantities.items():
        series: Series = {}
        for row in of(result.content["rows"], family="nb", dtype="float32"):
            errors = zip(row["theta"], row["errors"][quantity], strict=True)
            points = [(theta, max(e, 1e-8)) for theta, e in errors if e is not None]
            series[row["provider"]] = points
        panels.append(panel(title, "theta", "largest error / max(1, |exact|)", series))
    return panels


FIGURES = {
    "throughput_batch_size": against_batch_size,
    "throughput_genes": against_genes,
    "throughput_cells": against_cells,
    "memory": memory,
    "time_to_quality": time_to_quality,
    "accuracy_theta": accuracy,
}
TITLES = {
    "throughput_batch_size": "Throughput against the size of minibatches",
    "throughput_genes": "Throughput against the number of genes",
    "throughput_cells": "Throughput against the number of cells",
    "memory": "Memory",
    "time_to_quality": "Time to quality",
    "accuracy_theta": "Accuracy against theta",
}


def digest(panels: list[Panel]) -> str:
    return hashlib.sha256(json.dumps(panels, sort_keys=True).encode()).hexdigest()[:32]


def drawn(path: Path) -> str | None:
    """The digest of the numbers that a file was drawn from."""
    if not path.exists():
        return None
    found = re.search(r"numbers ([0-9a-f]{32})", path.read_text())
    return found.group(1) if found else None


def look(name: str, seen: dict[str, int]) -> dict[str, Any]:
    """One colour per system, one line style for each of its forms."""
    system = next((s for s in PROVIDERS if name.startswith(s)), name)
    seen[system] = seen.get(system, -1) + 1
    style = STYLES[seen[system] % len(STYLES)]
    width = 4 if system == "textbook" else 1.5  # to be seen under what lies on it
    return {"color": PROVIDERS.get(system, "black"), "linestyle": style, "linewidth": width}


def label_axes(axes: Any, content: Panel) -> None:
    """Plain numbers at round places; at the measured sizes where those are few."""
    from matplotlib import ticker

    axes.set(title=content["title"], xlabel=content["x"], ylabel=content["y"])
    axes.set(xscale="log", yscale=content.get("y_scale", "log"))
    points = [point for of in content["series"].values() for point in of]
    sizes = sorted({x for x, _ in points})
    if len(sizes) <= 6:
        axes.set_xticks(sizes, [f"{x:,.0f}" for x in sizes])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    values = [y for _, y in points]
    if content.get("y_scale", "log") == "log" and max(values) < 1e4 * min(values):
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    if limits := content.get("y_limits"):
        axes.set_ylim(limits)
    elif content.get("y_scale") == "linear":
        axes.set_ylim(bottom=0)


def draw(panels: list[Panel], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "fastvae", "font.size": 9}
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    with plt.rc_context(settings):
        figure, grid = plt.subplots(
            rows, columns, figsize=(5.2 * columns, 4.2 * rows), layout="constrained", squeeze=False
        )
        for axes, content in zip(grid.flat, panels, strict=False):
            seen: dict[str, int] = {}
            for name, points in content["series"].items():
                x, y = zip(*sorted(points), strict=True)
                marker = "o" if len(points) < 15 else None
                axes.plot(x, y, label=name, marker=marker, markersize=4, **look(name, seen))
            if "mark" in content:
                axes.axhline(content["mark"], color="0.6", linewidth=1, zorder=0)
            label_axes(axes, content)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(
                frameon=False, fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.15)
            )
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None, "Description": f"numbers {digest(panels)}"}
        figure.savefig(path, metadata=metadata)
        plt.close(figure)
    # matplotlib leaves blanks at the ends of lines
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
