"""Work done ahead of time in background threads, in a fixed order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(work: Callable[[T], R], items: Iterable[T], workers: int) -> Generator[R, None, None]:
    """Yield ``work(item)`` for each item, in order, up to `workers` of them begun in advance.

    Parameters
    ----------
    work
        Called in a background thread; what it raises is raised where its result is due.
    items
        Taken from one at a time.
    workers
        Threads; 0 does the work when its result is asked for.

    Yields
    ------
    R
        A result is not kept here once it has been handed over.
    """
    if workers == 0:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fastvae-data")
    begun: deque[Future[R]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
        pool.shutdown(wait=True, cancel_futures=True)
