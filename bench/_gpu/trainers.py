"""Training runs in a process of their own; prints one line of JSON for each minibatch size.

The peer's interpreter runs this file too, so that the peer's runs import nothing but torch and
their library.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Iterator
from statistics import median
from typing import Any


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(RUN))
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--epochs", type=int, default=2, help="timed ones, after the first")
    parser.add_argument("--copies", type=int, default=1, help="how often the cells are repeated")
    parser.add_argument("--most-steps", type=int, help="of the peer's epochs")
    parser.add_argument("--replays", type=int, default=200, help="of the captured step alone")
    # about 30 steps: to sum up the trace of more would take minutes
    parser.add_argument("--profiled-steps", type=int, default=30)
    return parser.parse_args()


def repeated(args: argparse.Namespace) -> Any:
    """The cells of the file, `copies` times under names of their own."""
    import anndata
    import numpy as np
    import scipy.sparse as sp

    data = anndata.read_h5ad(args.data)
    if args.copies == 1:
        return data
    counts = sp.vstack([data.X] * args.copies, format="csr")
    obs = data.obs.iloc[np.tile(np.arange(data.n_obs), args.copies)].copy()
    obs.index = [f"cell_{number}" for number in range(len(obs))]
    return anndata.AnnData(counts, obs=obs, var=data.var)


def start_peak(args: argparse.Namespace) -> None:
    import torch

    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(args: argparse.Namespace) -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if args.device == "cuda" else None


def fastvae(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Whole epochs, and beside them the replays of the captured step alone."""
    import graphs

    import fastvae

    data = repeated(args)
    for size in args.batch_sizes:
        start_peak(args)
        model = fastvae.Model(data, batch_key="batch")
        with graphs.made_steps() as made:
            model.fit(args.epochs + 1, size, seed=0, progress=False, device=args.device)
        speeds = model.history["cells_per_second"].tolist()
        found = {
            "cells_per_second": median(speeds[1:]),
            "first_epoch": speeds[0],
            "epoch_seconds": median(model.history["seconds"].tolist()[1:]),
            "final_elbo": model.history["train_elbo"].iloc[-1],
            "peak_bytes": peak(args),
            "version": fastvae.__version__,
        }
        steps = made[-1]
        if isinstance(steps, str):
            found["not_captured"] = steps
        else:
            alone = graphs.replay_milliseconds(steps.training[size], data.n_obs, args.replays)
            number = len(model.train_cells) / size
            found["replay"] = alone
            found["steps_per_epoch"] = number
            seconds = number * alone["median_ms"] / 1e3
            found["epoch_overhead_seconds"] = found["epoch_seconds"] - seconds
        yield found


def scvi_tools(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The peer at its defaults; an epoch of many minibatches is cut at `most_steps`."""
    import logging

    warnings.simplefilter("ignore")
    import scvi
    import torch

    try:
        from lightning.pytorch.callbacks import Callback
    except ImportError:
        from pytorch_lightning.callbacks import Callback

    logging.disable(logging.CRITICAL)
    data = repeated(args)
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")

    class Clock(Callback):
        def __init__(self) -> None:
            self.times: list[float] = []
            self.steps = 0

        def on_train_epoch_start(self, *_: object) -> None:
            if not self.times:
                self.times.append(time.perf_counter())
            self.steps = 0

        def on_train_batch_end(self, *_: object) -> None:
            self.steps += 1

        def on_train_epoch_end(self, *_: object) -> None:
            if args.device == "cuda":
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())

    for size in args.batch_sizes:
        start_peak(args)
        model, clock = scvi.model.SCVI(data), Clock()
        model.train(
            max_epochs=args.epochs + 1,
            accelerator="gpu" if args.device == "cuda" else "cpu",
            devices=1,
            batch_size=size,
            enable_progress_bar=False,
            callbacks=[clock],
            **({"limit_train_batches": args.most_steps} if args.most_steps else {}),
        )
        cells = min(clock.steps * size, len(model.train_indices))
        speeds = [cells / (b - a) for a, b in itertools.pairwise(clock.times)]
        yield {
            "cells_per_second": median(speeds[1:]),
            "first_epoch": speeds[0],
            "cells_per_epoch": cells,
            "steps_per_epoch": clock.steps,
            "peak_bytes": peak(args),
            "version": scvi.__version__,
        }


def door(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """`model.train` of ``fastvae.integrations.scvi_tools.SCVI`` with fastvae's own loop."""
    import logging

    warnings.simplefilter("ignore")
    import scvi
    from scvi.train._logger import SimpleLogger

    from fastvae.integrations.scvi_tools import SCVI

    logging.disable(logging.CRITICAL)
    data = repeated(args)
    scvi.settings.seed = 0
    SCVI.setup_anndata(data, batch_key="batch")
    times: list[float] = []
    log = SimpleLogger.log_metrics

    def clock(self: Any, metrics: dict[str, Any], step: int | None = None) -> None:
        if "train_loss" in metrics:  # once per epoch, when its losses have been read
            times.append(time.perf_counter())
        log(self, metrics, step)

    SimpleLogger.log_metrics = clock  # a callback would be a reason to train with Lightning
    for size in args.batch_sizes:
        start_peak(args)
        model = SCVI(data)
        times[:] = [time.perf_counter()]
        model.train(
            max_epochs=args.epochs + 1,
            accelerator="gpu" if args.device == "cuda" else "cpu",
            devices=1,
            batch_size=size,
            enable_progress_bar=False,
            loop="fastvae",
        )
        cells = len(model.train_indices)
        speeds = [cells / (b - a) for a, b in itertools.pairwise(times)]
        yield {
            "cells_per_second": median(speeds[1:]),
            "first_epoch": speeds[0],  # placing the counts and capturing the step are in it
            "final_elbo": float(model.history["elbo_train"].iloc[-1, 0]),
            "peak_bytes": peak(args),
            "version": scvi.__version__,
        }


def profile(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What runs in a step of `Model.fit`: kernels by time, launches, waits of the host."""
    data = repeated(args)
    for size in args.batch_sizes:
        yield one_profile(args, data[: args.profiled_steps * size].copy(), size)


def one_profile(args: argparse.Namespace, data: Any, size: int) -> dict[str, Any]:
    import graphs
    import torch
    from torch.profiler import ProfilerActivity

    import fastvae

    model = fastvae.Model(data, batch_key="batch")
    options = {"seed": 0, "progress": False, "device": args.device}
    with graphs.made_steps() as made, graphs.kept_graphs():
        model.fit(1, size, 1.0, **options)
    steps_made = made[-1]
    captured = not isinstance(steps_made, str)
    before = model.training["steps"]
    cuda = args.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=activities) as trace:
            model.fit(1, size, 1.0, **options)
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
        "graph_nodes": graphs.nodes(steps_made.training[size]) if captured else None,
        "not_captured": None if captured else steps_made,
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
    for found in RUN[asked.what](asked):
        print(json.dumps(found), flush=True)
