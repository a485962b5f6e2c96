"""Differential expression beside scvi-tools: the same weights, the same questions, known truth.

    python bench differential_expression --peer-python PYTHON --out JSON

Cells are simulated with known expression frequencies of every type (`fastvae.datasets.simulate`).
A model is trained on them with fastvae, and its very weights are moved into
``scvi.model.SCVI`` in the interpreter that has scvi-tools. Both then answer the same questions,
each several times with other seeds: every pair of types, mode "change", batch-corrected or not.

- A gene differs in truth if the log2 ratio of its frequencies in the two types (the mean over
  batches) is beyond delta. AUROC: of ``proba_de`` for that.
- FDR: the share of false ones among the genes marked at a target, beside that target.
- Median log-fold changes: the difference between the two systems, in units of its own Monte Carlo
  error (which the repetitions give). If they estimate the same number, its root mean square is
  about 1.
- Seconds of a question, all three kinds of it in turn; both systems with as many threads.

With --cells the question "each type against the rest" is put for so many cells as well, and its
time and peak memory taken in processes of their own.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _kit.environment import describe
from _kit.results import write_json

SETTINGS = {"mode": "change", "delta": 0.25, "n_samples_overall": 5000}
TARGETS = (0.05, 0.1, 0.2)
SYSTEMS = ("fastvae", "scvi-tools")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells-trained", type=int, default=3000)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--types", type=int, default=3)
    parser.add_argument("--density", type=float, default=0.15)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--datasets", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--cells", type=int, nargs="*", default=[], help="for time and memory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peer-python", required=True, help="has scvi-tools and fastvae")
    parser.add_argument("--ask", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rest", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def questions(args: argparse.Namespace) -> list[dict[str, Any]]:
    pairs = itertools.combinations(range(args.types), 2)
    return [
        {"group1": f"type_{one}", "group2": f"type_{two}", "batch_correction": corrected}
        for one, two in pairs
        for corrected in (False, True)
    ]


def prepare(args: argparse.Namespace, folder: Path, cells: int, epochs: int, seed: int) -> Any:
    """Simulate and train; leave data and model in `folder`."""
    import fastvae
    from fastvae.datasets import simulate

    adata = simulate(
        cells, args.genes, n_batches=2, n_types=args.types, density=args.density, seed=seed
    )
    folder.mkdir(parents=True)
    adata.write_h5ad(folder / "cells.h5ad")
    model = fastvae.Model(adata, batch_key="batch")
    model.fit(epochs, seed=seed, progress=False, n_epochs_kl_warmup=min(20, epochs))
    model.save(folder / "model")
    return adata


def truth(adata: Any, question: dict[str, Any]) -> np.ndarray:
    """True log2-fold change of each gene, the mean over batches."""
    scale, effect = np.asarray(adata.varm["type_scale"]), np.asarray(adata.varm["batch_effect"])
    rate = scale[:, :, None] * effect[:, None, :]  # genes, types, batches
    rate = rate / rate.sum(axis=0)
    one, two = (int(question[name].removeprefix("type_")) for name in ("group1", "group2"))
    change: np.ndarray = np.log2(rate[:, one] / rate[:, two]).mean(axis=1)
    return change


def worker(args: argparse.Namespace) -> None:
    """Answer for one folder, in the interpreter of the system asked."""
    warnings.simplefilter("ignore")
    import anndata
    import torch

    import fastvae

    torch.set_num_threads(args.threads)
    path = args.folder / "cells.h5ad"
    if args.ask == "fastvae":
        data: Any = path if args.rest else anndata.read_h5ad(path)
        where = {"residence": "disk", "memory_limit": "500MB"} if args.rest else {}
        model = fastvae.Model.load(args.folder / "model", data, device="cpu", **where)

        def ask(question: dict[str, Any], seed: int) -> Any:
            return model.differential_expression(
                groupby="cell_type", seed=seed, **question, **SETTINGS
            )
    else:
        import scvi

        from fastvae.integrations.convert import to_scvi_tools

        adata = anndata.read_h5ad(path)
        theirs = to_scvi_tools(fastvae.Model.load(args.folder / "model", device="cpu"), adata)

        def ask(question: dict[str, Any], seed: int) -> Any:
            scvi.settings.seed = seed
            return theirs.differential_expression(
                groupby="cell_type", silent=True, **question, **SETTINGS
            )

    started, before = time.perf_counter(), peak_memory()
    if args.rest:
        table = ask({}, 0)
        found = {"genes": np.array(len(table))}
    else:
        found = answers(args, ask)
    seconds = time.perf_counter() - started
    np.savez(args.out, seconds=seconds, memory=[before, peak_memory()], **found)


def answers(args: argparse.Namespace, ask: Any) -> dict[str, np.ndarray]:
    """Columns of every question and repetition, genes in the order of the data."""
    found: dict[str, list[np.ndarray]] = {}
    genes = [f"gene_{number}" for number in range(args.genes)]
    for question in questions(args):
        tables = []
        for seed in range(args.repeats):
            started = time.perf_counter()
            tables.append(ask(question, seed).loc[genes])
            found.setdefault("each_seconds", []).append(np.array(time.perf_counter() - started))
        for name in ("proba_de", "lfc_median"):
            stacked = np.stack([table[name].to_numpy(dtype=np.float64) for table in tables])
            found.setdefault(name, []).append(stacked)
    return {name: np.stack(values) for name, values in found.items()}


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_worker(args: argparse.Namespace, system: str, folder: Path, rest: bool) -> dict[str, Any]:
    python = sys.executable if system == "fastvae" else args.peer_python
    out = folder / f"{system}.npz"
    command = [python, __file__, "--ask", system, "--folder", folder, "--out", out]
    command += ["--genes", args.genes, "--types", args.types, "--repeats", args.repeats]
    command += ["--threads", args.threads, "--peer-python", args.peer_python]
    command += ["--rest"] if rest else []
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{system} failed:\n{done.stderr[-3000:]}")
    with np.load(out) as found:
        return dict(found)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive has a higher score than a negative; ties count half."""
    from scipy.stats import rankdata

    ranks, n_positive = rankdata(score), int(positive.sum())
    above = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * (len(score) - n_positive)))


def marked_at(proba_de: np.ndarray, target: float) -> np.ndarray:
    """scvi's rule: the largest k with ``mean(1 - p over the k most probable) <= target``."""
    order = np.argsort(-proba_de, kind="stable")
    expected = np.cumsum(1 - proba_de[order]) / np.arange(1, len(order) + 1)
    marked = np.zeros(len(order), dtype=bool)
    marked[order[: int((expected <= target).sum())]] = True
    return marked


def score(proba_de: np.ndarray, lfc: np.ndarray, change: np.ndarray) -> dict[str, Any]:
    """Figures of one answer against the truth."""
    positive = np.abs(change) >= SETTINGS["delta"]
    row: dict[str, Any] = {
        "auroc": auroc(proba_de, positive),
        "lfc_correlation": float(np.corrcoef(lfc, change)[0, 1]),
        "lfc_rms_error": float(np.sqrt(np.mean((lfc - change) ** 2))),
        "true_share": float(positive.mean()),
    }
    for target in TARGETS:
        marked = marked_at(proba_de, target)
        row[f"marked_at_{target}"] = int(marked.sum())
        row[f"false_share_at_{target}"] = (
            float((~positive[marked]).mean()) if marked.any() else None
        )
    return row


def compare(args: argparse.Namespace, folder: Path, seed: int) -> list[dict[str, Any]]:
    adata = prepare(args, folder, args.cells_trained, args.epochs, seed)
    found = {system: run_worker(args, system, folder, rest=False) for system in SYSTEMS}
    rows = []
    for number, question in enumerate(questions(args)):
        change = truth(adata, question)
        medians = {}
        row: dict[str, Any] = {"dataset": seed, **question}
        for system in SYSTEMS:
            proba, lfc = (found[system][name][number] for name in ("proba_de", "lfc_median"))
            each = [score(p, value, change) for p, value in zip(proba, lfc, strict=True)]
            row[system] = {
                name: float(np.mean(values))
                if None not in (values := [e[name] for e in each])
                else None
                for name in each[0]
            }
            row[system]["auroc_sd"] = float(np.std([e["auroc"] for e in each], ddof=1))
            seconds = found[system]["each_seconds"].reshape(-1, args.repeats)[number]
            row[system]["seconds"] = float(np.median(seconds))
            medians[system] = lfc
        mine, theirs = (medians[system] for system in SYSTEMS)
        error = np.sqrt((mine.var(0, ddof=1) + theirs.var(0, ddof=1)) / args.repeats)
        z = (mine.mean(0) - theirs.mean(0)) / np.maximum(error, 1e-12)
        row["lfc_median_difference"] = {
            "rms_in_monte_carlo_errors": float(np.sqrt(np.mean(z**2))),
            "share_beyond_3_errors": float((np.abs(z) > 3).mean()),
            "largest": float(np.abs(mine.mean(0) - theirs.mean(0)).max()),
            "mean_signed": float((mine.mean(0) - theirs.mean(0)).mean()),
        }
        rows.append(row)
    return rows


def at_scale(args: argparse.Namespace, folder: Path, cells: int) -> dict[str, Any]:
    prepare(args, folder, cells, 1, 0)
    row: dict[str, Any] = {"cells": cells, "genes": args.genes, "comparisons": args.types}
    for system in SYSTEMS:
        found = run_worker(args, system, folder, rest=True)
        before, after = (int(value) for value in found["memory"])
        row[system] = {
            "seconds": float(found["seconds"]),
            "peak_bytes": after,
            "more_than_before_bytes": after - before,
            "counts": "streamed from disk" if system == "fastvae" else "in memory",
        }
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for corrected in (False, True):
        mine = [row for row in rows if row["batch_correction"] is corrected]
        part: dict[str, Any] = {}
        for system in SYSTEMS:
            names = [name for name in mine[0][system] if name != "auroc_sd"]
            part[system] = {}
            for name in names:
                values = [row[system][name] for row in mine if row[system][name] is not None]
                part[system][name] = float(np.mean(values)) if values else None
        z = [row["lfc_median_difference"]["rms_in_monte_carlo_errors"] for row in mine]
        part["lfc_median_difference_rms_in_monte_carlo_errors"] = float(
            np.sqrt(np.mean(np.square(z)))
        )
        result["batch_corrected" if corrected else "observed_batches"] = part
    return result


def main() -> None:
    args = arguments()
    if args.ask:
        worker(args)
        return
    import torch

    torch.set_num_threads(args.threads)
    peer = subprocess.run(
        [args.peer_python, "-c", "import scvi, torch; print(scvi.__version__, torch.__version__)"],
        capture_output=True,
        text=True,
    ).stdout.split()
    options = {
        k: v
        for k, v in vars(args).items()
        if k not in ("out", "peer_python", "folder", "ask", "rest")
    }
    result: dict[str, Any] = {
        "environment": describe(),
        "scvi-tools": dict(zip(("scvi-tools", "torch"), peer, strict=False)),
        "options": options,
        "settings": SETTINGS,
        "gpu": "not measured on a GPU",
        "rows": [],
        "scale": [],
    }
    with tempfile.TemporaryDirectory() as name:
        for seed in range(args.datasets):
            result["rows"] += compare(args, Path(name) / f"data_{seed}", seed)
            result["summary"] = summary(result["rows"])
            write_json(args.out, result)
            print(f"data set {seed + 1} of {args.datasets} done", flush=True)
        for cells in args.cells:
            result["scale"].append(at_scale(args, Path(name) / f"scale_{cells}", cells))
            write_json(args.out, result)
    for kind, part in result.get("summary", {}).items():
        print(kind)
        for system in SYSTEMS:
            shown = "  ".join(f"{k} {v:.3f}" for k, v in part[system].items() if v is not None)
            print(f"  {system}: {shown}")
        z = part["lfc_median_difference_rms_in_monte_carlo_errors"]
        print(f"  median log-fold changes differ by {z:.2f} Monte Carlo errors (root mean square)")
    for row in result["scale"]:
        print({k: v for k, v in row.items()})


if __name__ == "__main__":
    main()
