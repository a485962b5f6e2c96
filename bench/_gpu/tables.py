"""Markdown tables of a folder of results, for documents: generated, never typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from _kit.markdown import number, table
from _kit.results import read_json

Content = dict[str, Any]
DIRECTIONS = {"forward": "forward", "both": "forward + backward"}


def tests(content: Content) -> str:
    rows = [
        [r["key"], *(r.get(k, "-") for k in ("passed", "failed", "skipped")), r["state"]]
        for r in content["rows"]
        if "passed" in r
    ]
    shares = [
        [
            r["key"],
            *(f"{name} {number(w['share_of_allowed'], 2)}" for name, w in r["worst"].items()),
        ]
        for r in content["rows"]
        if "worst" in r
    ]
    width = max(map(len, shares), default=1)
    padded = [[*line, *[""] * (width - len(line))] for line in shares]
    accuracy = table(["worst error / allowed", *[""] * (width - 1)], padded)
    failed = [f"- `{name}`" for r in content["rows"] for name in r.get("failed_tests", [])]
    return "\n".join(
        [table(["tests", "passed", "failed", "skipped", "state"], rows), "", *failed, "", accuracy]
    )


def bandwidth(content: Content) -> str:
    facts = content["facts"]
    rows = [[name, number(facts.get(f"{name}_gb_per_s"), 4)] for name in ("copy", "read")]
    return table(["memory", "GB/s"], rows)


def times_of(row: Content, direction: str) -> dict[str, Content]:
    return dict(row.get(direction, {}).get("times", {}))


def ratio(times: dict[str, Content], slow: str, fast: str) -> str:
    if slow not in times or fast not in times:
        return "-"
    return f"{times[slow]['median_ms'] / times[fast]['median_ms']:.1f}x"


def kernels(content: Content) -> str:
    rows = [row for row in content["rows"] if "both" in row]
    found = {name: None for row in rows for d in DIRECTIONS for name in times_of(row, d)}
    names, ours = list(found), "triton" if "triton" in found else "torch"
    parts = []
    for direction, title in DIRECTIONS.items():
        lines, memory = [], []
        for row in rows:
            times = times_of(row, direction)
            label = [row["family"], row["layout"], row["cells"], row["genes"]]
            label.append(number(row["tiles_with_large_counts"], 2))
            cells = [number(1e3 * times[n]["median_ms"]) if n in times else "-" for n in names]
            share = times.get(ours, {}).get("share_of_copy", {})
            replay = row[direction].get("graph_replay", {}).get(ours, {}).get("median_ms")
            lines.append(
                [
                    *label,
                    *cells,
                    number(None if replay is None else 1e3 * replay),
                    *(
                        f"{100 * share[k]:.0f} %" if k in share else "-"
                        for k in ("least", "budget")
                    ),
                    *(ratio(times, n, ours) for n in names if n != ours),
                ]
            )
            peaks = [times.get(n, {}).get("peak_matrices") for n in names]
            memory.append([*label, *(number(p) for p in peaks)])
        sizes = ["family", "counts", "cells", "genes", "tiles with a count above 7"]
        head = [*sizes, *(f"{n} us" for n in names), f"{ours}, graph us"]
        head += ["of copy, least bytes", "of copy, budget"]
        head += [f"{n} / {ours}" for n in names if n != ours]
        parts += [f"### {title}", table(head, lines)]
        if any(cell != "-" for line in memory for cell in line[5:]):
            parts += [
                f"Peak memory beyond the inputs, {title}, in N x G float32 matrices",
                table([*sizes, *names], memory),
            ]
    return "\n\n".join([*parts, "### largest errors against float64", errors(rows, names)])


def errors(rows: list[Content], names: list[str]) -> str:
    """Per contender, the worst over all rows."""
    lines = []
    for name in names:
        of = [row["agreement"].get(name, {}).get("errors", {}) for row in rows]
        nll = [e["nll"]["largest"] for e in of if e]
        grads = [v["norm"] for e in of for key, v in e.items() if key != "nll"]
        lines.append([name, f"{max(nll, default=float('nan')):.1e}"])
        lines[-1].append(f"{max(grads, default=float('nan')):.1e}")
    return table(["contender", "loss, relative", "gradients, relative norm"], lines)


def operations(content: Content) -> str:
    parts = []
    for operation in ("sample_and_kl", "count_linear"):
        rows = [r for r in content["rows"] if r.get("operation") == operation and "times" in r]
        names = list(dict.fromkeys(name for row in rows for name in row["times"]))
        lines = [
            [
                row["key"].removeprefix(operation).strip(),
                *(
                    number(1e3 * row["times"][n]["median_ms"]) if n in row["times"] else "-"
                    for n in names
                ),
                row["fastest"],
                row.get("forward", {}).get("fastest", "-"),
            ]
            for row in rows
        ]
        head = [operation, *(f"{n} us" for n in names), "fastest", "fastest forward"]
        parts.append(table(head, lines))
    return "\n\n".join([*parts, *sparse(content)])


def sparse(content: Content) -> list[str]:
    """Both forms of the first layer with what the package would take, and gathered rows."""
    of = {
        operation: [r for r in content["rows"] if r.get("operation") == operation and "times" in r]
        for operation in ("first_layer", "gather")
    }
    parts = []
    if rows := of["first_layer"]:
        names = list(dict.fromkeys(name for row in rows for name in row["times"]))
        over = list(dict.fromkeys(name for row in rows for name in row["time_over_best"]))
        head = ["first layer, forward: cells", "genes", "density", *(f"{n} us" for n in names)]
        head += [f"taken where the other is {n!r}, time over best" for n in over]
        lines = [
            [
                *(row[k] for k in ("cells", "genes", "density")),
                *(number(1e3 * row["times"].get(n, {}).get("median_ms", 0)) for n in names),
                *(f"{row['reckoned'][n]}, {number(row['time_over_best'].get(n))}" for n in over),
            ]
            for row in rows
        ]
        parts.append(table(head, lines))
    if rows := of["gather"]:
        lines = [
            [
                row["cells"],
                f"{row['data_set']:,}",
                name,
                number(1e3 * t["median_ms"]),
                number(t["gb_per_s"]),
            ]
            for row in rows
            for name, t in row["times"].items()
        ]
        parts.append(table(["gathered cells", "of", "form", "us", "GB/s"], lines))
    return parts


def smoke(content: Content) -> str:
    lines = [
        [
            row["key"],
            *(f"{row['off'][name]:.1e}" for name in ("losses", "weights")),
            "yes" if row["same_bits"] else "no",
            row["captured_replays"],
            row["state"],
        ]
        for row in content["rows"]
        if "off" in row
    ]
    head = ["captured against eager", "losses off", "weights off", "same bits", "replays", "state"]
    return table(head, lines)


def training(content: Content) -> str:
    rows = [r for r in content["rows"] if "cells_per_second" in r]
    lines = [
        [
            r["library"],
            r["version"],
            r["batch_size"],
            number(r["cells_per_second"]),
            number(r.get("replay", {}).get("median_ms")),
            number(r.get("epoch_seconds")),
            number(r.get("epoch_overhead_seconds")),
        ]
        for r in rows
    ]
    facts = content["facts"]
    head = ["library", "version", "batch", "cells/s"]
    head += ["replay alone, ms", "epoch, s", "of it beside the replays, s"]
    parts = [
        f"{facts.get('cells'):,} cells x {facts.get('genes'):,} genes, ZINB",
        table(head, lines),
    ]
    for row in content["rows"]:
        if "top" in row:
            keys = [k for k in row if k.endswith("_per_step")]
            means = [[k[:-9], number(row[k])] for k in keys]
            means.append(["graph nodes", number(row.get("graph_nodes"))])
            parts.append(table([f"per step of {row['batch_size']}", "mean"], means))
            top = [[f"`{t['name']}`", number(t["us_per_step"])] for t in row["top"][:10]]
            parts.append(table(["kernel or operator", "us per step"], top))
    return "\n\n".join(parts)


def tiles(content: Content) -> str:
    lines = []
    for row in content["rows"]:
        times = row.get("times", {})
        if times:
            best = row["fastest"]
            pair = [number(1e3 * times[k]["median_ms"]) for k in ("default", best)]
            lines.append([row["kernel"], row["cells"], row["genes"], pair[0], best, pair[1]])
    return table(["kernel", "cells", "genes", "default us", "best programs/warps", "us"], lines)


def atlas(content: Content) -> str:
    lines = [
        [
            row["key"],
            f"gather {batch}",
            number(gather["cells_per_second"]),
            number(gather["gb_per_s"]),
        ]
        for row in content["rows"]
        for batch, gather in row.get("gather", {}).items()
    ]
    epochs = [
        [
            row["key"],
            row["batch_size"],
            number(max(found["cells_per_second"])),
            ", ".join(number(seconds) for seconds in found["seconds"]),
        ]
        for row in content["rows"]
        if (found := row.get("epochs"))
    ]
    return "\n\n".join(
        [
            table(["atlas", "operation", "cells/s", "GB/s"], lines),
            table(["epochs of", "batch", "cells/s", "seconds"], epochs),
        ]
    )


def inspectors(content: Content) -> str:
    kernels = [kernel for row in content["rows"] for kernel in row.get("kernels", [])]
    names = list(dict.fromkeys(name for kernel in kernels for name in kernel))
    counters = table(names, [[kernel.get(name, "-") for name in names] for kernel in kernels])
    found = [f"{row['key']}: {row['summary']}" for row in content["rows"] if row.get("summary")]
    return "\n\n".join([*found, *([counters] if kernels else [])])


RENDER: dict[str, Callable[[Content], str]] = {
    "smoke": smoke,
    "bandwidth": bandwidth,
    "training": training,
    "tests": tests,
    "kernels": kernels,
    "operations": operations,
    "tiles": tiles,
    "atlas": atlas,
    "inspectors": inspectors,
}


def contents(place: Path) -> dict[str, Content]:
    """What a folder of results holds, or one file with all of them."""
    if place.is_file():
        return dict(read_json(place))
    found = {name: read_json(place / f"{name}.json") for name in ("summary", *RENDER)}
    return {name: content for name, content in found.items() if content is not None}


def render(place: Path) -> str:
    """All tables of the parts that are there, and what is missing from them."""
    found = contents(place)
    summary = found.get("summary", {})
    versions = ", ".join(f"{k} {v}" for k, v in summary.get("versions", {}).items() if v)
    commit = f"{summary.get('commit')}{' with changes' if summary.get('dirty') else ''}"
    parts = [f"{summary.get('device')}; {versions}; commit {commit}; {summary.get('date')}"]
    parts.append(summary.get("note", ""))
    for name, renderer in RENDER.items():
        content = found.get(name)
        if content is None:
            continue
        parts += [f"## {name}", renderer(content)]
        odd = [r for r in content["rows"] if r["state"] != "done"]
        parts += [f"{r['key']}: {r['state']}; {r.get('error', '')}".rstrip("; ") for r in odd]
        if content["state"] != "done":
            parts.append(f"This part: {content['state']}. {content['facts'].get('error', '')}")
    return "\n\n".join(filter(None, parts))
