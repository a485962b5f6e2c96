"""The figures that a run of the suite is about, from the files that its parts wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _kit.markdown import number
from _kit.results import read_json

Figures = dict[str, Any]


def rows_of(folder: Path, part: str, *needed: str) -> dict[str, Any]:
    """The rows of a part that were done and have these entries, by key."""
    content = read_json(folder / f"{part}.json") or {"rows": []}
    done = [row for row in content["rows"] if row["state"] == "done"]
    return {row["key"]: row for row in done if set(needed) <= set(row)}


def training(folder: Path) -> Figures:
    """Cells per second, and over the peer's at the same minibatch size."""
    rows = rows_of(folder, "training", "library")
    found: Figures = {}
    for row in rows.values():
        library, size = row["library"], row["batch_size"]
        if "cells_per_second" in row:
            found[f"training {library} {size}, cells/s"] = row["cells_per_second"]
            peer = rows.get(f"scvi-tools {size}")
            if peer is not None and row is not peer:
                ratio = row["cells_per_second"] / peer["cells_per_second"]
                found[f"training {library} {size} over scvi-tools"] = ratio
        if "replay" in row:
            found[f"training step {size}, replay alone, ms"] = row["replay"]["median_ms"]
            overhead = 1e3 * row["epoch_overhead_seconds"]
            found[f"training epoch {size}, beside the replays, ms"] = overhead
        if row.get("graph_nodes"):
            found[f"training step {size}, graph nodes"] = row["graph_nodes"]
    return found


def kernels(folder: Path) -> Figures:
    """Share of the copy's bandwidth that the fused likelihood reaches, forward and backward."""
    found: Figures = {}
    for key, row in rows_of(folder, "kernels", "both").items():
        shares = row["both"]["times"].get("triton", {}).get("share_of_copy")
        if shares:
            found[f"likelihood {key}, share of the copy's bandwidth"] = shares["least"]
    return found


def atlas(folder: Path) -> Figures:
    found: Figures = {}
    for key, row in rows_of(folder, "atlas", "gather", "epochs").items():
        for batch, gather in row["gather"].items():
            found[f"gather {batch} of {key}, cells/s"] = gather["cells_per_second"]
        found[f"epoch of {key}, s"] = min(row["epochs"]["seconds"])
    return found


def of_folder(folder: Path) -> Figures:
    """All of them, by what they are; a part that is missing has none."""
    smoke = (read_json(folder / "smoke.json") or {"rows": []})["rows"]
    tests = (read_json(folder / "tests.json") or {"facts": {}})["facts"].get("totals", {})
    bandwidth = (read_json(folder / "bandwidth.json") or {"facts": {}})["facts"]
    return {
        "captured step agrees with eager, configurations": sum(r["state"] == "done" for r in smoke),
        "of configurations": len(smoke),
        **{f"memory {name}, GB/s": bandwidth.get(f"{name}_gb_per_s") for name in ("copy", "read")},
        **training(folder),
        **{f"tests {outcome}": count for outcome, count in tests.items()},
        **kernels(folder),
        **atlas(folder),
    }


def shown(value: float | None) -> str:
    return str(value) if isinstance(value, int) else number(value, 4)


def rows(part: Figures) -> str:
    """How many rows of a part ended how."""
    return ", ".join(f"{count} {state}" for state, count in part["rows"].items()) or "none"


def text(summary: Figures) -> str:
    """The summary to read: device, versions, commit, figures, and what is missing."""
    versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items() if v)
    lines = [
        f"{summary.get('device')}; {versions}; commit {summary.get('commit')}",
        *([summary["note"]] if "note" in summary else []),
        *(f"{name}: {shown(value)}" for name, value in summary["figures"].items()),
        *(f"part {k}: {part['state']}, rows: {rows(part)}" for k, part in summary["parts"].items()),
        *(f"part {k}: left out, {why}" for k, why in summary["left_out"].items()),
        *(f"missing: {line}" for line in summary["missing"]),
    ]
    return "\n".join(lines)
