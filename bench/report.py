"""Tables and plots of the results in bench/results, for the README and docs/benchmarks.md.

    python bench/report.py            # writes between the markers, and docs/figures/*.svg
    python bench/report.py --check    # writes nothing; fails where either is not what JSON gives

Everything comes from the JSON. A file that does not say at which commit it was measured, whose
commit is not in this history, or in which a check of agreement failed is refused, and with it the
report: nothing is left out in silence.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from _gpu import tables as gpu_tables
from _report import figures, headlines, inputs, tables

NOTE = "<!-- written by `python bench/report.py` from bench/results; edit neither -->"
FOLDER = Path("docs") / "figures"
SECTIONS = [
    ("Operations", ["operations", "cpu_likelihood"], tables.suite),
    ("Training step", ["step"], tables.suite),
    ("Memory of a training step", ["step"], tables.memory),
    ("Training from a file", ["end_to_end"], tables.suite),
    ("Through the scvi-tools door", ["scvi_tools_door"], tables.door),
    ("Every model of the door", ["scvi_tools_models"], tables.door_models),
    ("Loading", ["loading"], tables.loading),
    ("Streaming from disk", ["streaming"], tables.streaming),
    ("Integration", ["integration"], tables.integration),
    ("Time to quality", ["time_to_quality"], tables.time_to_quality),
    ("Differential expression", ["differential_expression"], tables.differential),
    ("Accuracy", ["accuracy"], tables.accuracy),
]


def chosen(results: tables.Results, names: list[str]) -> list[inputs.Result]:
    """All files whose name begins with the first of `names` that there is."""
    for name in names:
        found = [r for stem, r in results.items() if stem == name or stem.startswith(f"{name}_")]
        if found:
            return found
    return []


def plots(results: tables.Results) -> dict[str, list[figures.Panel]]:
    found = {name: make(results) for name, make in figures.FIGURES.items()}
    return {name: panels for name, panels in found.items() if panels}


def page(results: tables.Results, runs: list[Path]) -> str:
    """Everything, for docs/benchmarks.md."""
    parts = [NOTE, "## In short", headlines.render(results, gpu_links(runs, "#on-a-gpu"))]
    for title, names, render in SECTIONS:
        for result in chosen(results, names):
            if text := render(result):
                parts += [f"## {title}", f"From `bench/results/{result.name}`.", text]
    for title, of_all in (
        ("Training beside scvi-tools", tables.training),
        ("Shuffling in blocks", tables.shuffling),
    ):
        if text := of_all(results):
            parts += [f"## {title}", text]
    for name in plots(results):
        title = figures.TITLES[name]
        parts += [f"## {title}", f"![{title}](figures/{name}.svg)"]
    parts.append("## On a GPU")
    parts += [gpu_tables.render(run).replace("\n## ", "\n### ") for run in runs] or [
        f"Every operation, training step and loader above: **{tables.NO_GPU}**. "
        "`python bench/gpu_suite.py --out DIR` measures them where there is one."
    ]
    return "\n\n".join([*parts, "## What was measured on what", tables.sources(results)])


def gpu_links(runs: list[Path], address: str) -> list[str]:
    return [f"[{run.name}]({address})" for run in runs]


def readme(results: tables.Results, runs: list[Path]) -> dict[str, str]:
    """The parts of README.md, by the name of their markers."""
    parts = {
        "numbers": headlines.three_numbers(results),
        "benchmarks": headlines.six_rows(results),
        "gpu": headlines.gpu_status(gpu_links(runs, "docs/benchmarks.md#on-a-gpu")),
    }
    return {name: f"{NOTE}\n\n{text}".rstrip() for name, text in parts.items()}


def between(path: Path, parts: dict[str, str]) -> str:
    """The file's content with each text between the markers of its name."""
    whole = path.read_text()
    for name, text in parts.items():
        start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
        if whole.count(start) != 1 or whole.count(end) != 1:
            raise inputs.RefusedError(
                f"{path.name} needs one {start} and one {end} to write between"
            )
        before, rest = whole.split(start)
        whole = f"{before}{start}\n\n{text}\n\n{end}{rest.split(end)[1]}"
    return whole


def stale(root: Path, results: tables.Results, runs: list[Path], check: bool) -> list[str]:
    """Bring every file up to date, or only say which are not."""
    found = []
    for name, parts in (
        ("README.md", readme(results, runs)),
        ("docs/benchmarks.md", {"benchmarks": page(results, runs)}),
    ):
        wanted = between(root / name, parts)
        if wanted != (root / name).read_text():
            found.append(name)
            if not check:
                write(root / name, wanted)
    drawings = plots(results)
    for name, panels in drawings.items():
        path = root / FOLDER / f"{name}.svg"
        if figures.drawn(path) != figures.digest(panels):
            found.append(str(path.relative_to(root)))
            if not check:
                figures.draw(panels, path)
    for name in figures.FIGURES:
        path = root / FOLDER / f"{name}.svg"
        if name not in drawings and path.exists():
            found.append(f"{path.relative_to(root)} (nothing to draw it from)")
            if not check:
                path.unlink()
    return found


def write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if not current")
    parser.add_argument("--root", type=Path, default=inputs.ROOT, help="another checkout than this")
    args = parser.parse_args()
    try:
        results = inputs.load(args.root)
        found = stale(args.root, results, inputs.gpu_runs(args.root), args.check)
    except inputs.RefusedError as error:
        print(error, file=sys.stderr)
        return 2
    if args.check and found:
        print(f"not what bench/results gives: {', '.join(found)}", file=sys.stderr)
        print("run `python bench/report.py` and commit what it writes", file=sys.stderr)
        return 1
    print("up to date" if not found else f"written: {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
