"""The CPU kernels beside what people run today, in turn within one run.

    pytest bench/ -k cpu                       # with pytest-benchmark's table
    python bench/bench_cpu.py --out JSON       # the figures alone, and as Markdown on the screen

Each case times value and gradients of the likelihood for counts at 8 % density: this package's
backends, the textbook form eager and compiled, and scvi-tools' own distributions eager and compiled
where it is installed. Everybody has to agree with float64 first. They take turns of five runs, so
that a drifting clock is fair to all and nobody finds only the others' data in the caches. A ratio
is a median over this package's median.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _gpu import agreement, contenders, problems, timing

from fastvae import _backend

CPU = torch.device("cpu")
SIZES = [(128, 2000), (1024, 8000)]
DENSITY = 0.08
FASTVAE = "fastvae cpu"
RUNS = 5  # in a row, per turn
CASES = [
    (family, layout, *size)
    for size in SIZES
    for family in problems.FAMILIES
    for layout in ("csr", "dense")
]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.compile warns of what it leaves eager


def losses(family: str) -> dict[str, Callable[..., Any]]:
    """Everybody's loss of each cell, by name; who is not installed is left out."""
    found = {
        FASTVAE: contenders.NLL[family],  # chosen by itself: `measure` makes sure
        "fastvae torch": contenders.on_backend(contenders.NLL[family], "torch"),
        "textbook": contenders.densified(contenders.textbook),
        "textbook compiled": contenders.compiled("textbook", family),
    }
    try:
        peer = contenders.scvi_tools(family)
    except ImportError:
        return found
    found["scvi-tools"] = contenders.densified(peer)
    # their argument checks are for every call; a compiler cannot trace all of them
    compiled = torch.compile(peer, dynamic=False)
    found["scvi-tools compiled"] = contenders.densified(compiled)
    return found


def measure(family: str, layout: str, n: int, genes: int, seconds: float) -> dict[str, Any]:
    """Times, and ratios to this package's CPU backend, of all that run and agree."""
    contenders.forget()
    assert _backend.select(torch.ones(1)).__name__.endswith(".cpu"), "the library was not built"
    problem = problems.make_problem(family, n, genes, layout, CPU, DENSITY)
    exact = agreement.exact(problem)
    steps, left_out = {}, {}
    for name, loss in losses(family).items():
        step = contenders.forward_backward(loss, problem)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = agreement.compare(step(), exact, ["nll", *problem.leaf_names()])
        except Exception as error:
            if not name.endswith("compiled"):
                raise
            left_out[name] = f"does not compile: {str(error).splitlines()[0][:120]}"
            continue
        if found["agrees"]:
            steps[name] = step
        else:
            left_out[name] = f"disagrees with float64: {found['errors']}"
    assert FASTVAE in steps, left_out
    times = timing.interleaved(steps, CPU, seconds, RUNS)
    ours = times[FASTVAE]["median_ms"]
    return {
        "family": family,
        "layout": layout,
        "cells": n,
        "genes": genes,
        "milliseconds": {name: time["median_ms"] for name, time in times.items()},
        "ratios": {name: time["median_ms"] / ours for name, time in times.items()},
        "left_out": left_out,
    }


@pytest.mark.parametrize(
    ("family", "layout", "n", "genes"), CASES, ids=lambda v: str(v) if v is not None else ""
)
def test_cpu_likelihood(benchmark: Any, family: str, layout: str, n: int, genes: int) -> None:
    found = measure(family, layout, n, genes, seconds=4.0)
    benchmark.extra_info.update(found)
    benchmark.group = f"{family} {layout} {n} x {genes}, cpu"
    problem = problems.make_problem(family, n, genes, layout, CPU, DENSITY)
    step = contenders.forward_backward(losses(family)[FASTVAE], problem)
    benchmark.pedantic(step, warmup_rounds=timing.WARM_UP, rounds=20)


def as_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: milliseconds of this package, and how many times longer the others take."""
    names = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    others = [name for name in names if name != FASTVAE]
    lines = [
        f"| likelihood | cells x genes | {FASTVAE} | {' | '.join(others)} |",
        "|---" * (3 + len(others)) + "|",
    ]
    for row in rows:
        ratios = [f"{row['ratios'][k]:.1f}x" if k in row["ratios"] else "-" for k in others]
        case = f"{row['family']} {row['layout']} | {row['cells']} x {row['genes']}"
        lines.append(f"| {case} | {row['milliseconds'][FASTVAE]:.2f} ms | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="per case")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for case in CASES:
        rows.append(measure(*case, seconds=args.seconds))
        print(rows[-1]["ratios"], rows[-1]["left_out"] or "", flush=True)
    from fastvae.kernels.native import instruction_set

    from fastvae import __version__

    result = {
        "what": "likelihood with gradients by logits and log theta, 8 % density, medians",
        "threads": args.threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "instruction_set": instruction_set(),
        "versions": {"fastvae": __version__, "torch": torch.__version__},
        "rows": rows,
    }
    print(as_table(rows))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
