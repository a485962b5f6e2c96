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
        sizes = ["family", "counts", "cells", "genes"]
        head = [*sizes, *(f"{n} us" for n in names), f"{ours}, graph us"]
        head += ["of copy, least bytes", "of copy, budget"]
        head += [f"{n} / {ours}" for n in names if n != ours]
        parts += [f"### {title}", table(head, lines)]
        if any(cell != "-" for line in memory for cell in line[4:]):
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


def training(content: Content) -> str:
    rows = [r for r in content["rows"] if "cells_per_second" in r]
    lines = [
        [r["library"], r["version"], r["batch_size"], number(r["cells_per_second"])] for r in rows
    ]
    facts = content["facts"]
    parts = [
        f"{facts.get('cells'):,} cells x {facts.get('genes'):,} genes, ZINB",
        table(["library", "version", "batch", "cells/s"], lines),
    ]
    for row in content["rows"]:
        if "top" in row:
            keys = [k for k in row if k.endswith("_per_step")]
            parts.append(table(["per step", "mean"], [[k[:-9], number(row[k])] for k in keys]))
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


RENDER: dict[str, Callable[[Content], str]] = {
    "tests": tests,
    "bandwidth": bandwidth,
    "kernels": kernels,
    "operations": operations,
    "training": training,
    "tiles": tiles,
}


def render(folder: Path) -> str:
    """All tables of the parts that are there, and what is missing from them."""
    summary = read_json(folder / "summary.json") or {}
    versions = ", ".join(f"{k} {v}" for k, v in summary.get("versions", {}).items() if v)
    commit = f"{summary.get('commit')}{' with changes' if summary.get('dirty') else ''}"
    parts = [f"{summary.get('device')}; {versions}; commit {commit}; {summary.get('date')}"]
    for name, renderer in RENDER.items():
        content = read_json(folder / f"{name}.json")
        if content is None:
            continue
        parts += [f"## {name}", renderer(content)]
        odd = [r for r in content["rows"] if r["state"] != "done"]
        parts += [f"{r['key']}: {r['state']}; {r.get('error', '')}".rstrip("; ") for r in odd]
        if content["state"] != "done":
            parts.append(f"This part: {content['state']}. {content['facts'].get('error', '')}")
    return "\n\n".join(filter(None, parts))
