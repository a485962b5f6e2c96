"""Work done ahead of time in background threads, in a fixed order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

K = TypeVar("K")
R = TypeVar("R")


class Ahead(Generic[K, R]):
    """Results of ``work(key)``; work on the keys that follow begins before they are needed.

    A result is not kept here once it has been handed over. What `work` raises is raised where its
    result is taken, or not at all if nobody takes it.

    Parameters
    ----------
    workers
        Threads; 0 does the work when its result is taken.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._begun: deque[tuple[K, Future[R]]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def take(self, key: K, work: Callable[[K], R], follow: Callable[[K], K | None]) -> R:
        """Return ``work(key)``, and begin the work on the key that follows.

        Parameters
        ----------
        key
            What is wanted now.
        work
            Called in a background thread.
        follow
            The key that will be taken after a given one, or None; a wrong guess only costs time.
        """
        if self._workers == 0:
            return work(key)
        if self._begun and self._begun[0][0] != key:
            self.drop()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="fastvae-data")
        if not self._begun:
            self._begun.append((key, self._pool.submit(work, key)))
        following = follow(self._begun[-1][0])
        while following is not None and len(self._begun) <= self._workers:
            self._begun.append((following, self._pool.submit(work, following)))
            following = follow(following)
        return self._begun.popleft()[1].result()

    def drop(self) -> None:
        """Drop work that was begun, and wait until no thread is busy."""
        self._begun.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
