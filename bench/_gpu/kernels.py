"""The likelihoods from decoder logits: all contenders, forward and forward with backward."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _kit import timing
from _kit.agreement import compare, exact
from _kit.contenders import (
    CAPTURABLE,
    Loss,
    available_backends,
    compiled,
    contenders,
    forget,
    forward,
    forward_backward,
)
from _kit.problems import (
    FAMILIES,
    SPREAD,
    Problem,
    make_problem,
    moved_bytes,
    needed_bytes,
    spread_for,
    tiles_with_large_counts,
)
from _kit.results import Part, Row, short

Run = tuple[str, str, int, int]  # family, layout, cells, genes

# "dense genes": the few thousand genes that vary most, which hold more and larger counts
USUAL = "all genes"
GENE_SETS = {USUAL: (0.08, SPREAD), "dense genes": (0.2, spread_for(0.15))}
DENSE_GENES: list[Run] = [("zinb", "dense", 4096, 2000), ("zinb", "csr", 4096, 2000)]
TINY_DENSE_GENES: list[Run] = [("zinb", "csr", 16, 50)]

# The most telling first: launch-bound, the target size, the usual sizes; then the rest.
SIZES = [
    (128, 2000),
    (4096, 8000),
    (4096, 2000),
    (1024, 8000),
    (1024, 30000),
    (128, 30000),
    (4096, 30000),
    (1024, 60000),
    (4096, 60000),
    (128, 8000),
    (128, 60000),
    (1024, 2000),
]
TINY_SIZES = [(16, 50)]
COMPILED_SIZES = SIZES[:5] + TINY_SIZES
COMPILED_REFERENCE_SIZES = SIZES[:1] + TINY_SIZES
GRAPH_ENTRIES = 10_000_000  # above it, launches cost next to nothing
COMPILE_SHARE = 0.4  # of the part's time


def order(sizes: list[tuple[int, int]]) -> list[Run]:
    """All combinations, by how much each tells."""
    head, tail = sizes[:5], sizes[5:]
    zinb = [("zinb", layout, *size) for size in head for layout in ("dense", "csr")]
    others = [(family, "dense", *size) for size in head[:4] for family in ("nb", "poisson")]
    sparse = [(family, "csr", *size) for size in head[:4] for family in ("nb", "poisson")]
    first = zinb[:6] + others[:4] + zinb[6:] + others[4:] + sparse
    rest = [(f, x, *size) for f in FAMILIES for x in ("dense", "csr") for size in sizes]
    last = [run for run in rest if run[2:] in tail]
    return list(dict.fromkeys(first + last + rest))


class Compiler:
    """Compiles until its share of the time is spent."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def add(self, what: str, problem: Problem, losses: dict[str, Loss], row: Row) -> None:
        name = f"compiled {what}"
        if self.left <= 0:
            row["missing"][name] = "no time left for compiling"
            return
        started = time.monotonic()
        try:
            loss = compiled(what, problem.family)
            forward(loss, problem)()
            forward_backward(loss, problem)()
            timing.synchronize(problem.dense.device)
            losses[name] = loss
        except Exception as error:
            row["missing"][name] = short(error)
        spent = time.monotonic() - started
        row.setdefault("compile_seconds", {})[name] = round(spent, 2)
        self.left -= spent


def fits(family: str, n: int, genes: int, device: torch.device) -> str | None:
    """Why the row cannot run for want of memory, or None."""
    if device.type != "cuda":
        return None
    timing.release()
    free, _ = torch.cuda.mem_get_info(device)
    needed = needed_bytes(family, n, genes)
    if needed > free:
        return f"needs about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
    return None


def agreement(problem: Problem, losses: dict[str, Loss]) -> dict[str, Any]:
    """Errors of every contender; a NaN or an exception is a disagreement too."""
    want = exact(problem)
    names = ["nll", *problem.leaf_names()]
    result: dict[str, Any] = {}
    for name, loss in losses.items():
        try:
            result[name] = compare(forward_backward(loss, problem)(), want, names)
        except Exception as error:
            result[name] = {"agrees": False, "error": short(error)}
            torch.cuda.synchronize() if torch.cuda.is_available() else None
    return result


def measure(
    problem: Problem,
    losses: dict[str, Loss],
    wrap: Callable[..., Callable[[], Any]],
    seconds: float,
    bandwidth: float | None,
) -> dict[str, Any]:
    """Times, traffic, memory and graph replays of one direction."""
    n, genes = problem.shape
    device = problem.dense.device
    functions = {name: wrap(loss, problem) for name, loss in losses.items()}
    times = timing.interleaved(functions, device, seconds)
    traffic = moved_bytes(problem, backward=wrap is forward_backward)
    result: dict[str, Any] = {"bytes": traffic, "times": times}
    for name, function in functions.items():
        entry: dict[str, Any] = times[name]
        per_second = 1e3 / entry["median_ms"]
        entry["gb_per_s"] = {of: bytes_ * per_second / 1e9 for of, bytes_ in traffic.items()}
        if bandwidth:
            entry["share_of_copy"] = {k: v / bandwidth for k, v in entry["gb_per_s"].items()}
        peak = timing.peak_bytes(function, device)
        entry["peak_matrices"] = None if peak is None else peak / (4.0 * n * genes)
    if device.type == "cuda" and n * genes <= GRAPH_ENTRIES:
        # making CSR dense waits for the host, except in the fused kernels
        names = CAPTURABLE if problem.layout == "dense" else CAPTURABLE[:1]
        graphs = {name: functions[name] for name in names if name in functions}
        result["graph_replay"] = replayed(graphs, device, seconds / 2)
    return result


def replayed(functions: dict[str, Any], device: torch.device, seconds: float) -> dict[str, Any]:
    graphs, failed = {}, {}
    for name, function in functions.items():
        try:
            graphs[name] = timing.captured(function)
        except Exception as error:
            failed[name] = {"error": short(error)}
    return {**timing.interleaved(graphs, device, seconds), **failed}


@dataclass
class Session:
    """What all rows share; `seconds` are for each direction of each row."""

    part: Part
    device: torch.device
    backends: list[str]
    bandwidth: float | None
    compiler: Compiler
    seconds: float


def likelihood_row(row: Row, session: Session, case: Run, gene_set: str) -> None:
    """Everybody is compared with float64, then those who agree are timed in turn."""
    family, layout, n, genes = case
    reason = fits(family, n, genes, session.device)
    if reason:
        row.update(state="left out", error=reason)
        return
    problem = make_problem(family, n, genes, layout, session.device, *GENE_SETS[gene_set])
    row["density"] = problem.nonzeros / (n * genes)
    row["tiles_with_large_counts"] = tiles_with_large_counts(problem.dense)
    losses, row["missing"] = contenders(family, session.backends)
    forget()
    if layout == "dense" and gene_set == USUAL:
        if (n, genes) in COMPILED_SIZES:
            session.compiler.add("textbook", problem, losses, row)
        if (n, genes) in COMPILED_REFERENCE_SIZES and family == "zinb":
            session.compiler.add("reference", problem, losses, row)
    row["agreement"] = agreement(problem, losses)
    good = {k: loss for k, loss in losses.items() if row["agreement"][k]["agrees"]}
    bad = sorted(set(losses) - set(good))
    session.part.save("running")  # the errors are on disk before the first timing
    for direction, wrap in [("forward", forward), ("both", forward_backward)]:
        row[direction] = measure(problem, good, wrap, session.seconds, session.bandwidth)
        session.part.save("running")
    if bad:
        row.update(state="disagreement", error=f"beyond the tolerance: {', '.join(bad)}")


def run(
    part: Part,
    device: torch.device,
    tiny: bool,
    bandwidth: float | None,
    compile_seconds: float | None = None,
) -> None:
    """Measure all rows that fit into the part's time."""
    found = available_backends(device)
    backends = [name for name, reason in found.items() if reason is None]
    part.facts.update(
        backends={name: reason or "runs" for name, reason in found.items()},
        copy_gb_per_s=bandwidth,
        bytes=" ".join((moved_bytes.__doc__ or "").split()),
        tolerance="loss: largest error relative to max(1, |exact|); all: relative norm; 1e-4",
        cache="filled by reading before each repeat" if device.type == "cuda" else "warm",
    )
    seconds = 0.05 if tiny else 0.5
    if compile_seconds is None:
        compile_seconds = 0.1 if tiny else COMPILE_SHARE * part.left()  # 0.1: one, then no more
    compiler = Compiler(compile_seconds)
    session = Session(part, device, backends, bandwidth, compiler, seconds)
    usual = [(case, USUAL) for case in order(TINY_SIZES if tiny else SIZES)]
    dense = [(case, "dense genes") for case in (TINY_DENSE_GENES if tiny else DENSE_GENES)]
    for case, gene_set in usual[:4] + dense + usual[4:]:
        family, layout, n, genes = case
        key = f"{family} {layout} {n} x {genes}" + ("" if gene_set == USUAL else f", {gene_set}")
        part.row(
            key,
            lambda row, c=case, s=gene_set: likelihood_row(row, session, c, s),
            limit=120,
            needs=4 * seconds + 0.5,
            family=family,
            layout=layout,
            cells=n,
            genes=genes,
            gene_set=gene_set,
        )
