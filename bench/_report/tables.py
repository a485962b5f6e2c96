"""Markdown tables of the results for docs/benchmarks.md, one function per kind of file."""

from __future__ import annotations

from statistics import mean
from typing import Any

from _kit.markdown import number, table

from .inputs import Result

NO_GPU = "not measured on a GPU"
OURS = "fastvae cpu"
Results = dict[str, Result]


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x" if value < 100 else f"{value:,.0f}x"


def speed(per_second: float) -> str:
    """Three significant digits: more would be the machine's mood."""
    return number(float(f"{per_second:.3g}"))


def operations(results: Results) -> Result | None:
    """The timed operations; what an earlier script measured where the suite's are not there."""
    return results.get("operations") or results.get("cpu_likelihood")


def of(rows: list[dict[str, Any]], **labels: Any) -> list[dict[str, Any]]:
    return [r for r in rows if all(r.get(k) == v for k, v in labels.items())]


def label(row: dict[str, Any]) -> str:
    """``likelihood, zinb csr``: the operation and its kind, without sizes."""
    kind = " ".join(str(row[k]) for k in ("family", "layout", "kind") if row.get(k))
    operation = row.get("operation", "likelihood")
    return ", ".join(filter(None, (operation, kind)))


def size(row: dict[str, Any]) -> str:
    return f"{row['cells']:,} x {row['genes']:,}" if "genes" in row else f"{row['cells']:,}"


def suite(result: Result) -> str:
    """What `pytest bench/` measured: milliseconds of this package, ratios of the others."""
    rows = result.content["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    ours = row_baseline(rows)
    others = [name for name in names if name != ours]
    head = ["case", "cells x genes", f"{ours}, ms", *others]
    if any(row.get("device", "cpu") != "cpu" for row in rows):
        head.insert(2, "device")
    lines = []
    for row in rows:
        line = [label(row), size(row), number(row["milliseconds"].get(ours))]
        if "device" in head:
            line.insert(2, row.get("device", "cpu"))
        lines.append([*line, *(times(row["ratios"].get(name)) for name in others)])
    notes = left_out(rows)
    return "\n\n".join([table(head, lines), *notes])


def row_baseline(rows: list[dict[str, Any]]) -> str:
    """Whose time the ratios are taken over."""
    return str(rows[0].get("baseline", OURS))


def left_out(rows: list[dict[str, Any]]) -> list[str]:
    """Who is missing from a table, with the reason, once each."""
    reasons: dict[str, None] = {}
    for row in rows:
        for name, reason in (row.get("left_out") or {}).items():
            reasons[f"{name}: {reason.split(': {')[0]}"] = None
    return ["A dash: " + "; ".join(reasons) + "."] if reasons else []


def memory(result: Result) -> str:
    """Peak memory of a training step beyond what was there before it."""
    rows = [row for row in result.content["rows"] if row.get("peak_mb")]
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row["peak_mb"]))
    lines = [[label(r), size(r), *(number(r["peak_mb"].get(n)) for n in names)] for r in rows]
    kept = (
        "Beyond what is there before the step. fastvae keeps memory for results on a CPU from step "
        "to step, at most 134 MB in a thread, which is not in these figures."
    )
    return f"{table(['peak of a step, MB', 'cells x genes', *names], lines)}\n\n{kept}"


def training(results: Results) -> str:
    lines = []
    for name, result in results.items():
        if not name.startswith("cpu_training"):
            continue
        found = result.content
        ratio = found["cells_per_second"]["fastvae"] / found["cells_per_second"]["scvi-tools"]
        shape = f"{found['cells']:,} x {found['genes']:,}"
        lines.append([shape, *spread(found, "fastvae"), *spread(found, "scvi-tools")])
        lines[-1].append(times(ratio))
    head = ["cells x genes", "fastvae, cells/s", "runs", "scvi-tools, cells/s", "runs", "ratio"]
    return table(head, lines) if lines else ""


def spread(found: dict[str, Any], name: str) -> list[str]:
    """The median and from where to where the runs went."""
    runs = [run["cells_per_second"] for run in found["every_run"][name]]
    return [speed(found["cells_per_second"][name]), f"{speed(min(runs))} to {speed(max(runs))}"]


def door(result: Result) -> str:
    lines = []
    for row in result.content["rows"]:
        turns = row["ratio_of_each_turn"]
        lines.append(
            [
                row["shape"].replace("x", " x "),
                *(speed(row["cells_per_second"][k]) for k in ("ours", "theirs")),
                times(row["ratio"]),
                f"{times(min(turns))} to {times(max(turns))}",
                f"{row['losses_apart']:.1e}",
            ]
        )
    head = ["cells x genes", "through fastvae, cells/s", "scvi.model.SCVI, cells/s", "ratio"]
    return table([*head, "ratios of the turns", "losses apart, relative"], lines)


def door_models(result: Result) -> str:
    lines = []
    for row in result.content["rows"]:
        turns, seconds = row["ratio_of_each_turn"], row["seconds_per_epoch"]
        lines.append(
            [
                row["case"],
                *(f"{seconds[who]:.2f}" for who in ("ours", "theirs")),
                times(row["ratio"]),
                f"{times(min(turns))} to {times(max(turns))}",
            ]
        )
    head = ["model", "through fastvae, s per epoch", "scvi-tools, s per epoch", "ratio"]
    rows = table([*head, "ratios of the turns"], lines)
    given = result.content["settings"]
    shape, threads = given["shape"].replace("x", " x "), given["threads"]
    peer = f"scvi-tools {result.versions().get('scvi-tools')}"
    said = f"{peer}, {shape}, seconds of processor time, threads: {threads}; {given['note']}."
    return f"{said}\n\n{rows}"


def loading(result: Result) -> str:
    lines = []
    for genes, loaders in result.content["times"].items():
        sizes = list(next(iter(loaders.values())))
        for name, ms in loaders.items():
            speeds = [speed(128e3 / ms[size]) for size in sizes]
            lines.append([f"{int(genes):,}", name, *speeds])
    head = ["genes", "loader", *(f"minibatches of {int(s):,}, cells/s" for s in sizes)]
    return table(head, lines)


def streaming(result: Result) -> str:
    found = result.content
    lines = []
    for name, entry in found["steps"].items():
        kind, cells = name.split()
        where = {"memory": "memory"}.get(kind, f".{kind} on disk")
        line = [f"{int(cells):,}", where, speed(128e3 / entry["ms_per_step"])]
        lines.append([*line, f"{entry['speed']:.2f}"])
    head = ["cells", "counts in", "training, cells/s", "of the speed from memory"]
    peak = found["peak"]
    note = (
        f"Peak memory of an epoch over {peak['cells']:,} cells with a limit of {found['limit']}: "
        f"{peak['peak_mb']:.0f} MB above the process after its imports."
    )
    return "\n\n".join([table(head, lines), note])


def shuffling(results: Results) -> str:
    lines = []
    for name, result in results.items():
        if not name.startswith("shuffle_quality"):
            continue
        found = result.content
        disk, noise = found["disk_minus_memory"], found["reordered_minus_memory"]
        lines.append([f"{found['cells']:,}", found["epochs"], len(disk["each"])])
        lines[-1].append(f"{mean(found['elbo']['memory']):.2f}")
        lines[-1] += [f"{of['mean']:+.2f} ± {of['standard_error']:.2f}" for of in (disk, noise)]
        lines[-1].append(f"{found['speed_disk_over_memory']:.2f}")
    head = ["cells, sorted by type", "epochs", "seeds", "validation ELBO (negative), full shuffle"]
    head += ["in blocks from disk, minus that", "another full shuffle, minus that"]
    head.append("cells/s from disk, relative")
    return table(head, lines) if lines else ""


def time_to_quality(result: Result) -> str:
    found = result.content
    lines = []
    for name, faster in found["times_faster_per_epoch"].items():
        line = [name]
        for reached in found["reached"].values():
            entry = reached[name]
            line += [entry["epochs"] or "not reached", number(entry["seconds"])]
            line.append(times(entry["times_sooner"]))
        lines.append([*line, times(faster)])
    head = [f"{found['cells']:,} cells x {found['genes']:,} genes, {found['epochs']} epochs"]
    for kind, mark in found["marks"].items():
        head += [f"epochs to scvi-tools' {kind} validation ELBO ({mark:,.1f})", "seconds", "sooner"]
    return table([*head, "faster per epoch"], lines)


def integration(result: Result) -> str:
    found = result.content
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in found["rows"]:
        groups.setdefault((row["system"], row["k"]), []).append(row)
    lines = []
    for (system, k), rows in groups.items():
        line: list[Any] = [system, k, len(rows)]
        for figure in ("same_batch_share", "label_accuracy"):
            values = [row[figure] for row in rows]
            low, high = min(values), max(values)
            line.append(f"{mean(values):.3f} ({low:.3f} to {high:.3f})")
        lines.append(line)
    head = ["latent space", "k", "seeds", "same-batch share of neighbours"]
    note = f"Chance of the same batch: {found['chance']:.3f}. Mean, least and most of the seeds."
    return "\n\n".join([table([*head, "labels right by neighbours"], lines), note])


def differential(result: Result) -> str:
    found = result.content
    systems = ("fastvae", "scvi-tools")
    lines, parts = [], []
    for kind, part in found.get("summary", {}).items():
        for system in systems:
            entry = part[system]
            figures = ("auroc", "lfc_correlation", "lfc_rms_error")
            line = [kind.replace("_", " "), system, *(f"{entry[f]:.3f}" for f in figures)]
            false = entry.get("false_share_at_0.1")
            line.append("-" if false is None else f"{false:.3f}")
            line.append(f"{entry['seconds']:.2f}")
            lines.append(line)
    head = ["expression", "system", "AUROC", "correlation of log-fold changes", "their RMS error"]
    head += ["false among those marked at 0.1", "seconds per question"]
    if lines:
        parts.append(table(head, lines))
    if found["scale"]:
        lines = [
            [
                f"{row['cells']:,} x {row['genes']:,}",
                system,
                number(row[system]["seconds"]),
                number(row[system]["more_than_before_bytes"] / 1e6),
                row[system]["counts"],
            ]
            for row in found["scale"]
            for system in systems
        ]
        head = ["each type against the rest, cells x genes", "system", "seconds"]
        parts.append(table([*head, "memory above the start, MB", "counts"], lines))
    return "\n\n".join(parts)


def accuracy(result: Result) -> str:
    """Worst error of log p per theta, and of its gradient by log theta."""
    rows = of(result.content["rows"], family="nb", dtype="float32")
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    parts = [f"{result.content['what'].capitalize()}. {result.content['points']}"]
    if where := result.content["triton"]:
        parts.append(f"`fastvae triton` ran {where}; {NO_GPU}.")
    for quantity, title in (("log_p", "log NB"), ("log_theta", "its gradient by log theta")):
        lines: dict[float, list[str]] = {}
        for row in rows:
            for theta, error in zip(row["theta"], row["errors"][quantity], strict=True):
                line = lines.setdefault(theta, [f"{theta:g}"])
                line.append("NaN" if error is None else f"{error:.1e}")
        parts.append(table([f"{title}: theta", *providers], list(lines.values())))
    return "\n\n".join(parts)


def sources(results: Results) -> str:
    """Every file quoted, with commit, machine and versions."""
    lines = []
    for result in results.values():
        versions = ", ".join(f"{k} {v}" for k, v in sorted(result.versions().items()))
        machine = result.fact("device") or result.fact("machine") or "-"
        threads = result.fact("threads") or (result.content.get("settings") or {}).get("threads")
        commit = f"`{result.commit[:10]}`"
        if result.environment.get("dirty"):
            commit += " with changes"
        if "commit_source" in result.content:
            commit += " (from git log)"
        lines.append([f"`{result.name}`", commit, machine, threads or "-", versions or "-"])
    return table(["file in bench/results", "commit", "machine", "threads", "versions"], lines)
