"""How many nodes the captured step has, and how long its replays take by themselves."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

REPLAYS, ROUNDS = 200, 5
TINY_REPLAYS = 3


@contextmanager
def made_steps() -> Iterator[list[Any]]:
    """What training makes in the block to replay: `StaticSteps`, or why there are none."""
    from fastvae.train import run

    made: list[Any] = []
    make = run.make_static_steps

    def keeping(*arguments: Any) -> Any:
        made.append(make(*arguments))
        return made[-1]

    with mock.patch.object(run, "make_static_steps", keeping):
        yield made


@contextmanager
def kept_graphs() -> Iterator[None]:
    """Graphs captured in the block can be looked into afterwards."""
    kept = functools.partial(torch.cuda.CUDAGraph, keep_graph=True)
    with mock.patch.object(torch.cuda, "CUDAGraph", kept):
        yield


def nodes(step: Any) -> int:
    """Nodes of a captured step's graphs, which were made under `kept_graphs`."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtime = ctypes.CDLL(next(line.split()[-1] for line in maps if "libcudart" in line))
    total = 0
    for graph in step._graphs:
        count = ctypes.c_size_t()
        handle = ctypes.c_void_p(graph.raw_cuda_graph())
        status = runtime.cudaGraphGetNodes(handle, None, ctypes.byref(count))
        if status:
            raise RuntimeError(f"cudaGraphGetNodes returned {status}")
        total += count.value
    return total


def replay_milliseconds(step: Any, cells: int, replays: int) -> dict[str, Any]:
    """Time of a step: `replays` of them one after another, as training launches them."""
    rows = torch.randperm(cells, device=step.store.device)
    size = len(step.rows)
    given = [rows[i : i + size] for i in range(0, cells - size + 1, size)]
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for number in range(replays):
            step(given[number % len(given)])
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / replays)
    return {"median_ms": median(times), "rounds_ms": times, "replays": replays}
