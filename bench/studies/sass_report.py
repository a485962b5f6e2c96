"""Instructions, registers and memory width of every kernel variant, from cross-compiled code.

python bench sass_report              prints the table; no GPU is needed
python bench sass_report --write      also puts it between the markers in kernels/README.md
python bench sass_report --out FILE   also writes the figures as JSON
python bench sass_report --targets 90 only for sm_90
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
import sass  # noqa: E402
from _kit.environment import describe  # noqa: E402
from _kit.results import write_json  # noqa: E402

START, END = "<!-- sass: start -->", "<!-- sass: end -->"


def table(reports: list[sass.Report], targets: list[int]) -> list[str]:
    """One row per kernel and case; figures that differ by target stand in the targets' order."""
    rows: dict[tuple[str, str], dict[int, sass.Report]] = {}
    for report in reports:
        rows.setdefault((report.kernel, report.case), {})[report.target] = report
    names = ("entries", "instructions", "rare", "MUFU", "registers", "stack", "loads", "stores")
    lines = [f"| kernel | case | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for (kernel, case), by_target in sorted(rows.items()):
        found = [by_target[t] for t in targets if t in by_target]
        cells = [
            f"{found[0].entries} x {32 * found[0].warps}",
            in_order([f"{r.main:.1f}" for r in found]),
            in_order([f"{r.rare:.1f}" if r.rare else "-" for r in found]),
            in_order([f"{r.mufu:.1f}" for r in found]),
            in_order([str(r.registers) for r in found]),
            in_order([str(r.stack + r.local) for r in found]),
            in_order([by_width(r.loads) for r in found]),
            in_order([by_width(r.stores) for r in found]),
        ]
        lines.append(f"| {kernel.replace('_kernel', '')} | {case} | {' | '.join(cells)} |")
    return lines


def in_order(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def by_width(found: dict[int, int]) -> str:
    """``3 x 128, 5 x 32``: accesses by bits."""
    return ", ".join(f"{number} x {bits}" for bits, number in found.items()) or "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="update kernels/README.md")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--targets", type=int, nargs="+", default=list(sass.TARGETS))
    options = parser.parse_args()
    if reason := sass.missing():
        sys.exit(f"nothing to compile with: {reason}; pip install triton")
    version, reports = sass.compile_all(dict.fromkeys(options.targets, False))
    targets = ", ".join(f"sm_{t}" for t in options.targets)
    text = "\n".join(
        [
            f"Compiled by triton {version} for {targets}; where a figure differs, in that order."
            " Entries per thread and pass x threads; then instructions per entry in the main loop"
            " (in the whole kernel where it has no loop; copies of unrolled loops count), in the"
            " parts of it that branches skip, and special-function ones; registers per thread;"
            " bytes of stack and local memory; global loads and stores per pass by bits.",
            "",
            *table(reports, options.targets),
        ]
    )
    print(text)
    if options.out:
        figures = {"triton": version, "reports": [dataclasses.asdict(r) for r in reports]}
        write_json(options.out, {"environment": describe(), **figures})
    if options.write:
        page = ROOT / "kernels" / "README.md"
        whole = page.read_text()
        if START not in whole or END not in whole:
            sys.exit(f"{page.name} has no {START} ... {END} to write between")
        before, rest = whole.split(START)
        page.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
