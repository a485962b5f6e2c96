"""`Progress`: how training goes, as a bar on a terminal, a line in a notebook, lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from .._status import NotebookLine, print_status, progress_style

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Item = TypeVar("Item")

LINE_EVERY_SECONDS = 30.0
"""A log gets ten lines at even steps, and one more after this time without a line."""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Progress:
    """Shows nothing; the base class of the others.

    Parameters
    ----------
    first_epoch, last_epoch
        Numbers of the epochs of this run, from 1.
    n_cells
        Training cells per epoch.
    """

    def __init__(self, first_epoch: int, last_epoch: int, n_cells: int) -> None:
        self.first_epoch = first_epoch
        self.last_epoch = last_epoch
        self.n_cells = n_cells
        self.validation = math.nan
        self._started = time.perf_counter()

    def within_epoch(self, epoch: int, cells: int, elbo: float) -> None:
        """Note that `cells` of `epoch` are done, with a mean negative ELBO of `elbo`."""

    def after_epoch(self, epoch: int, elbo: float, validation: float) -> None:
        """Note that `epoch` is done."""

    def say(self, text: str) -> None:
        """Show a text once, without disturbing the bar."""

    def close(self) -> None:
        """Restore the terminal."""

    def status(self, epoch: int, cells: int, elbo: float) -> str:
        """Return ``-ELBO ... cells/s ... ETA ...``; the ELBO is that of a mean cell."""
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        done = (epoch - self.first_epoch) * self.n_cells + cells
        total = (self.last_epoch - self.first_epoch + 1) * self.n_cells
        parts = [f"-ELBO {elbo:.2f}"]
        if not math.isnan(self.validation):
            parts.append(f"validation {self.validation:.2f}")
        parts.append(f"{done / elapsed:,.0f} cells/s")
        parts.append(f"ETA {_duration(elapsed * (total - done) / max(done, 1))}")
        return "  ".join(parts)


class Lines(Progress):
    """Plain lines on standard error, for logs and pipes."""

    def __init__(self, first_epoch: int, last_epoch: int, n_cells: int) -> None:
        super().__init__(first_epoch, last_epoch, n_cells)
        self._every = max(1, math.ceil((last_epoch - first_epoch + 1) / 10))
        self._last_line = self._started

    def within_epoch(self, epoch: int, cells: int, elbo: float) -> None:
        """Write a line if the last one is `LINE_EVERY_SECONDS` old."""
        if time.perf_counter() - self._last_line >= LINE_EVERY_SECONDS:
            self._write(epoch, cells, elbo)

    def after_epoch(self, epoch: int, elbo: float, validation: float) -> None:
        """Write a line for the first epoch, the last, each tenth part, and after a long pause."""
        self.validation = validation
        number = epoch - self.first_epoch + 1
        silent = time.perf_counter() - self._last_line >= LINE_EVERY_SECONDS
        if number == 1 or number % self._every == 0 or epoch == self.last_epoch or silent:
            self._write(epoch, self.n_cells, elbo)

    def say(self, text: str) -> None:
        """Write a line."""
        print(text, file=sys.stderr, flush=True)

    def _write(self, epoch: int, cells: int, elbo: float) -> None:
        self._last_line = time.perf_counter()
        line = f"epoch {epoch}/{self.last_epoch}  {self.status(epoch, cells, elbo)}"
        print(line, file=sys.stderr, flush=True)


class Bar(Progress):
    """A bar that moves about once a second."""

    def __init__(self, first_epoch: int, last_epoch: int, n_cells: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        super().__init__(first_epoch, last_epoch, n_cells)
        self._rich: RichProgress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            console=Console(stderr=True),
        )
        total = (last_epoch - first_epoch + 1) * n_cells
        self._task: TaskID = self._rich.add_task(self._label(first_epoch), total=total, status="")
        self._rich.start()

    def within_epoch(self, epoch: int, cells: int, elbo: float) -> None:
        """Move the bar."""
        self._rich.update(
            self._task,
            description=self._label(epoch),
            completed=(epoch - self.first_epoch) * self.n_cells + cells,
            status=self.status(epoch, cells, elbo),
        )

    def after_epoch(self, epoch: int, elbo: float, validation: float) -> None:
        """Move the bar to the end of `epoch`."""
        self.validation = validation
        self.within_epoch(epoch, self.n_cells, elbo)

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        self._rich.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bar as it is and restore the cursor."""
        self._rich.stop()

    def _label(self, epoch: int) -> str:
        return f"epoch {epoch}/{self.last_epoch}"


class LiveLine(Progress):
    """One line in a notebook, which changes about once a second."""

    EVERY_SECONDS = 1.0

    def __init__(self, first_epoch: int, last_epoch: int, n_cells: int) -> None:
        super().__init__(first_epoch, last_epoch, n_cells)
        self._line = NotebookLine(f"epoch {first_epoch}/{last_epoch}")
        self._changed = self._started

    def within_epoch(self, epoch: int, cells: int, elbo: float) -> None:
        """Change the line if it is a second old, or for the last time."""
        last = epoch == self.last_epoch and cells == self.n_cells
        if last or time.perf_counter() - self._changed >= self.EVERY_SECONDS:
            self._changed = time.perf_counter()
            status = self.status(epoch, cells, elbo)
            self._line.show(f"epoch {epoch}/{self.last_epoch}  {status}")

    def after_epoch(self, epoch: int, elbo: float, validation: float) -> None:
        """Change the line at the end of `epoch`."""
        self.validation = validation
        self.within_epoch(epoch, self.n_cells, elbo)

    def say(self, text: str) -> None:
        """Write a line beside the one that changes."""
        print_status(text)


def make_progress(show: bool, first_epoch: int, last_epoch: int, n_cells: int) -> Progress:
    """Return the kind of progress that suits where it goes, or a silent one."""
    if not show:
        return Progress(first_epoch, last_epoch, n_cells)
    kinds: dict[str, type[Progress]] = {"terminal": Bar, "notebook": LiveLine, "lines": Lines}
    return kinds[progress_style()](first_epoch, last_epoch, n_cells)


def tracked(
    items: Iterable[Item], titles: Sequence[str], what: str, *, show: bool
) -> Iterator[Item]:
    """Go over `items`, and say on standard error which of them it is.

    On a terminal a bar moves, in a notebook a line changes; elsewhere there is a line for the
    first, and for the next after each half minute.

    Parameters
    ----------
    titles
        One for each item.
    what
        What an item is.
    show
        Whether to say anything.
    """
    if not show:
        yield from items
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    style = progress_style()
    if style == "notebook":
        shown = NotebookLine("")
        for number, item in enumerate(items):
            shown.show(f"{what} {number + 1}/{len(titles)}: {titles[number]}")
            yield item
        return
    if style == "lines":
        said = -math.inf
        for number, item in enumerate(items):
            if time.perf_counter() - said >= LINE_EVERY_SECONDS:
                said = time.perf_counter()
                line = f"{what} {number + 1}/{len(titles)}: {titles[number]}"
                print(line, file=sys.stderr, flush=True)
            yield item
        return
    columns = (MofNCompleteColumn(), BarColumn(bar_width=None), TextColumn("{task.description}"))
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=len(titles))
        for number, item in enumerate(items):
            bar.update(task, description=escape(titles[number]), completed=number)
            yield item
        bar.update(task, completed=len(titles))
