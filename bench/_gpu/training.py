"""Cells per second of whole training, beside scvi-tools at its defaults on the same cells.

"door" is scvi-tools' ``model.train`` with fastvae's class, which trains with fastvae's own loop; it
runs where scvi-tools is, and needs fastvae there too.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from _kit.results import Part, Row

from .graphs import TINY_REPLAYS

TRAINER = Path(__file__).with_name("trainers.py")
LIMIT = 70.0  # seconds until a process has its first, or its next, result
TINY_LIMIT = 600.0  # where a device is rehearsed that is none
SIMULATED, COPIES, GENES = 50_000, 20, 2_000
SIZES = (128, 1024, 4096, 16384)
MOST_STEPS = 1500  # of one of the peer's epochs
TINY_PROFILED = 2  # steps


class Trainer:
    """A process that prints one line of JSON for each minibatch size."""

    def __init__(self, python: str, options: list[str], errors: Path) -> None:
        self._errors, self._lines = errors, queue.Queue[str | None]()
        with errors.open("wb") as stream:
            self.process = subprocess.Popen(
                [python, str(TRAINER), *options], stdout=subprocess.PIPE, stderr=stream, text=True
            )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # other libraries print as well
                self._lines.put(line)
        self._lines.put(None)

    def next_result(self, seconds: float) -> Row:
        """Wait for the next line; what the process said last is the error if there is none."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"no result within {seconds:.0f} s") from None
        if line is None:
            self._lines.put(None)  # for the sizes that follow
            text = " ".join(self._errors.read_text(errors="replace").split())
            raise RuntimeError(text[-350:] or f"exit {self.process.wait()}")
        return dict(json.loads(line))


@contextlib.contextmanager
def trainer(python: str, options: list[str], errors: Path) -> Iterator[Trainer]:
    running = Trainer(python, options, errors)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def rows_of(
    part: Part,
    what: str,
    python: str,
    fixed: list[str],
    sizes: list[int],
    errors: Path,
    limit: float,
) -> None:
    """One process for one library, one row for each minibatch size as it comes."""
    keys = [f"{what} {size}" for size in sizes]
    if part.has(keys):  # a part that was started again
        return
    with contextlib.ExitStack() as stack:
        given = [what, *fixed, "--batch-sizes", *map(str, sizes)]
        failure: list[Exception] = []
        process: Trainer | None = None
        try:
            process = stack.enter_context(trainer(python, given, errors))
        except OSError as error:  # no such interpreter
            failure.append(error)

        def fill(row: Row) -> None:
            if process is None or failure:
                raise failure[0]
            try:
                row.update(process.next_result(max(1.0, min(limit, part.left()))))
            except TimeoutError as error:
                failure.append(error)  # a line that comes later belongs to this size
                raise

        for key, size in zip(keys, sizes, strict=True):
            part.row(key, fill, limit=limit + 30, needs=3, library=what, batch_size=size)


def run(part: Part, device: torch.device, tiny: bool, peer_python: str) -> None:
    """fastvae first, then its profile, then the peer and its door."""
    from fastvae.datasets import simulate

    cells, genes, copies = (20, 16, 2) if tiny else (SIMULATED, GENES, COPIES)
    density = 0.3 if tiny else 0.08
    epochs, limit = (1, TINY_LIMIT) if tiny else (2, LIMIT)
    sizes = [8] if tiny else list(SIZES)
    part.facts.update(
        cells=cells * copies, genes=genes, density=density, batch_key=True, train_size=0.9,
        epochs=epochs, most_steps_of_the_peer=MOST_STEPS,
        timed="median over the epochs after the first; each library with its own loader",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        data, errors = Path(folder) / "simulated.h5ad", Path(folder) / "errors.txt"
        started = time.monotonic()
        simulate(cells, genes, density=density, seed=0).write_h5ad(data)
        part.facts["simulated_in_seconds"] = round(time.monotonic() - started, 1)
        fixed = [f"--data={data}", f"--device={device.type}", f"--copies={copies}"]
        fixed += [f"--epochs={epochs}", f"--most-steps={MOST_STEPS}"]
        if tiny:
            fixed += [f"--replays={TINY_REPLAYS}", f"--profiled-steps={TINY_PROFILED}"]
        own = sys.executable
        plan = [
            ("fastvae", own, sizes),
            ("profile", own, [sizes[0], *sizes[2:3]]),
            ("scvi-tools", peer_python, sizes),
            ("door", peer_python, [sizes[0], *sizes[2:3]]),
        ]
        for what, python, chosen in plan:
            rows_of(part, what, python, fixed, chosen, errors, limit)
