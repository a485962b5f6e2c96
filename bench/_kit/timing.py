"""The one timer: several functions in turn, on events, with the cache emptied in between."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

FLUSH_BYTES = 512 * 2**20  # several times the second-level cache of any device so far
WARM_UP = 3
MIN_ROUNDS = 5
MAX_ROUNDS = 200

Function = Callable[[], Any]
Timing = dict[str, float]


@cache
def _flush_buffer() -> torch.Tensor:
    return torch.zeros(FLUSH_BYTES // 4, dtype=torch.float32, device="cuda")


def _flush() -> None:
    """Fill the second-level cache by reading: lines left by writing would be written back later."""
    _flush_buffer().sum()


def release() -> None:
    """Give the flush buffer and all cached memory back."""
    _flush_buffer.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _one_round(functions: list[Function], device: torch.device) -> list[float]:
    """Milliseconds of each function, once."""
    if device.type != "cuda":
        times = []
        for function in functions:
            started = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - started))
        return times
    events = []
    for function in functions:
        # The device is busy emptying its cache while the host queues what is timed.
        _flush()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in events]


def samples(
    functions: dict[str, Function],
    device: torch.device,
    seconds: float,
    runs: int = 1,
    warm_up: int = WARM_UP,
    rounds: int = MIN_ROUNDS,
) -> dict[str, list[float]]:
    """Time functions in turn, so that a drifting clock is fair to all.

    Parameters
    ----------
    functions
        By name.
    seconds
        Time for all of them together, after the warm-up; at least `rounds`, at most 200.
    runs
        How often each runs in a row when its turn comes.
    warm_up
        How often each runs before.
    rounds
        How many turns each has at least.

    Returns
    -------
    dict
        By name: milliseconds of every run, in order. Each starts with a cold second-level cache on
        CUDA, and with warm caches elsewhere.
    """
    names = list(functions)
    if not names:
        return {}
    for function in functions.values():
        for _ in range(warm_up):
            function()
    synchronize(device)
    found: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + seconds
    for number in range(MAX_ROUNDS):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        order = [name for name in order for _ in range(runs)]
        for name, ms in zip(order, _one_round([functions[n] for n in order], device), strict=True):
            found[name].append(ms)
        if number + 1 >= rounds and time.perf_counter() > end:
            break
    return found


def interleaved(
    functions: dict[str, Function], device: torch.device, seconds: float, runs: int = 1
) -> dict[str, Timing]:
    """Median and quartiles in milliseconds and the number of repeats, by name; see `samples`."""
    found = samples(functions, device, seconds, runs)
    return {name: summarise(values) for name, values in found.items()}


def summarise(ms: list[float]) -> Timing:
    q25, median, q75 = statistics.quantiles(ms, n=4, method="inclusive")
    return {"median_ms": median, "q25_ms": q25, "q75_ms": q75, "repeats": len(ms)}


def peak_bytes(function: Function, device: torch.device) -> int | None:
    """Most memory in use during a call, beyond what was there before; None off CUDA."""
    if device.type != "cuda":
        function()
        return None
    function()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = function()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def captured(function: Function) -> Function:
    """The function as a CUDA graph: replaying it leaves the launches' cost on the host out."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay
