"""One training run in a process of its own; prints one line of JSON. Imports no neighbour.

The peer's interpreter runs this file too, so that it needs nothing but torch and its library.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from statistics import median
from typing import Any


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(RUN))
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--cells", type=int, required=True)
    return parser.parse_args()


def fastvae(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    import fastvae

    model = fastvae.Model(args.data, batch_key="batch")
    model.fit(args.epochs + 1, args.batch_size, seed=0, progress=False, device=args.device)
    speeds = model.history["cells_per_second"].tolist()
    peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else None
    return {
        "cells_per_second": median(speeds[1:]),
        "first_epoch": speeds[0],
        "final_elbo": model.history["train_elbo"].iloc[-1],
        "peak_bytes": peak,
        "version": fastvae.__version__,
    }


def scvi_tools(args: argparse.Namespace) -> dict[str, Any]:
    import logging

    warnings.simplefilter("ignore")
    import anndata
    import scvi
    import torch

    try:
        from lightning.pytorch.callbacks import Callback
    except ImportError:
        from pytorch_lightning.callbacks import Callback

    logging.disable(logging.CRITICAL)
    adata = anndata.read_h5ad(args.data)
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    ends: list[float] = []

    class Clock(Callback):
        def on_train_epoch_start(self, *_: object) -> None:
            if not ends:
                ends.append(time.perf_counter())

        def on_train_epoch_end(self, *_: object) -> None:
            if args.device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    model.train(
        max_epochs=args.epochs + 1,
        accelerator="gpu" if args.device == "cuda" else "cpu",
        devices=1,
        batch_size=args.batch_size,
        enable_progress_bar=False,
        callbacks=[Clock()],
    )
    cells = int(0.9 * args.cells)
    speeds = [cells / (b - a) for a, b in itertools.pairwise(ends)]
    return {
        "cells_per_second": median(speeds[1:]),
        "first_epoch": speeds[0],
        "peak_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else None,
        "version": scvi.__version__,
    }


def door(args: argparse.Namespace) -> dict[str, Any]:
    """`model.train` of ``fastvae.integrations.scvi_tools.SCVI`` with fastvae's own loop."""
    import logging

    warnings.simplefilter("ignore")
    import anndata
    import scvi
    import torch
    from scvi.train._logger import SimpleLogger

    from fastvae.integrations.scvi_tools import SCVI

    logging.disable(logging.CRITICAL)
    adata = anndata.read_h5ad(args.data)
    scvi.settings.seed = 0
    SCVI.setup_anndata(adata, batch_key="batch")
    model = SCVI(adata)
    times: list[float] = []
    log = SimpleLogger.log_metrics

    def clock(self: Any, metrics: dict[str, Any], step: int | None = None) -> None:
        if "train_loss" in metrics:  # once per epoch, when its losses have been read
            times.append(time.perf_counter())
        log(self, metrics, step)

    SimpleLogger.log_metrics = clock  # a callback would be a reason to train with Lightning
    times.append(time.perf_counter())
    model.train(
        max_epochs=args.epochs + 1,
        accelerator="gpu" if args.device == "cuda" else "cpu",
        devices=1,
        batch_size=args.batch_size,
        enable_progress_bar=False,
        loop="fastvae",
    )
    cells = len(model.train_indices)
    speeds = [cells / (b - a) for a, b in itertools.pairwise(times)]
    return {
        "cells_per_second": median(speeds[1:]),
        "first_epoch": speeds[0],  # placing the counts and capturing the step are in it
        "final_elbo": float(model.history["elbo_train"].iloc[-1, 0]),
        "peak_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else None,
        "version": scvi.__version__,
    }


def profile(args: argparse.Namespace) -> dict[str, Any]:
    """What runs in a step of `Model.fit`: kernels by time, launches, waits of the host."""
    import torch
    from torch.profiler import ProfilerActivity

    import fastvae
    import fastvae.data

    # about 30 steps: to sum up the trace of more would take minutes
    data = fastvae.data.read(args.data)[: 30 * args.batch_size].copy()
    model = fastvae.Model(data, batch_key="batch")
    options = {"seed": 0, "progress": False, "device": args.device}
    model.fit(1, args.batch_size, 1.0, **options)
    before = model.training["steps"]
    cuda = args.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=activities) as trace:
            model.fit(1, args.batch_size, 1.0, **options)
            if cuda:
                torch.cuda.synchronize()
        events = trace.key_averages()
    steps = model.training["steps"] - before

    def device_time(event: Any) -> float:
        for name in ("self_device_time_total", "self_cuda_time_total"):
            if hasattr(event, name):
                return float(getattr(event, name))
        return 0.0

    def counted(*names: str) -> float:
        return sum(e.count for e in events if e.key.startswith(names)) / steps

    on_device = [e for e in events if str(e.device_type).endswith("CUDA")]
    ranked = on_device if cuda else list(events)
    cost = device_time if cuda else (lambda e: float(e.self_cpu_time_total))
    ranked = sorted(ranked, key=cost, reverse=True)[:15]
    return {
        "steps": steps,
        "batch_size": args.batch_size,
        "launches_per_step": counted("cudaLaunchKernel", "cuLaunchKernel"),
        "graph_launches_per_step": counted("cudaGraphLaunch"),
        "copies_per_step": counted("cudaMemcpyAsync"),
        "waits_per_step": counted("cudaStreamSynchronize", "cudaDeviceSynchronize"),
        "operator_calls_per_step": counted("aten::"),
        "device_us_per_step": sum(map(device_time, on_device)) / steps,
        "top": [
            {"name": e.key[:120], "us_per_step": cost(e) / steps, "per_step": e.count / steps}
            for e in ranked
        ],
    }


RUN = {"fastvae": fastvae, "scvi-tools": scvi_tools, "door": door, "profile": profile}


if __name__ == "__main__":
    asked = arguments()
    print(json.dumps(RUN[asked.what](asked)))
