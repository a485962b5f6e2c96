"""Results on disk as they come: each part has one JSON file, rewritten whole after each row."""

from __future__ import annotations

import faulthandler
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESTART = 3  # exit status of a part that wants a fresh process
Row = dict[str, Any]


class PoisonedDeviceError(RuntimeError):
    """The device answers no more in this process; a new one may go on with the next row."""


def write_json(path: Path, content: Any) -> None:
    """Replace the file in one step: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, default=str) + "\n")
    partial.replace(path)


def read_json(path: Path) -> Any:
    """What is in the file, None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def short(error: BaseException) -> str:
    """One readable line per error; compilers' messages run to pages."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


class Part:
    """The rows of one part, resumed from its file if an earlier process died.

    Parameters
    ----------
    path
        The part's JSON file.
    seconds
        Time this part may take; rows not begun by then are recorded as left out.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.name = path.stem
        self.deadline = time.monotonic() + seconds
        before = read_json(path) or {}
        self.facts: dict[str, Any] = before.get("facts", {})
        self.rows: list[Row] = before.get("rows", [])
        for row in self.rows:
            if row["state"] == "running":
                row.update(state="failed", error="the process died or hung in this row")
        self._done = {row["key"] for row in self.rows}
        self.save("running")

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def has(self, keys: Iterable[str]) -> bool:
        """Whether an earlier process came to all of these rows."""
        return self._done.issuperset(keys)

    def save(self, state: str) -> None:
        content = {"part": self.name, "state": state, "facts": self.facts, "rows": self.rows}
        write_json(self.path, content)

    def row(
        self,
        key: str,
        measure: Callable[[Row], None],
        *,
        limit: float = 90.0,
        needs: float = 1.0,
        **labels: Any,
    ) -> None:
        """Run one measurement, which fills in its row; a failure stays in the row.

        Parameters
        ----------
        key
            Names the row; one that is there already is left as it is.
        limit
            Seconds after which the process is ended, in the belief that the device hangs.
        needs
            Seconds that must be left to begin.
        """
        if key in self._done:
            return
        self._done.add(key)
        row: Row = {"key": key, "state": "running", **labels}
        self.rows.append(row)
        if self.left() < needs:
            row["state"] = "out of time"
            return
        self.save("running")
        faulthandler.dump_traceback_later(limit, exit=True)
        started = time.monotonic()
        try:
            measure(row)
            row["state"] = row["state"].replace("running", "done")
        except Exception as error:
            row.update(state="failed", error=short(error))
            traceback.print_exc()
            if not device_answers():
                self.save("running")
                raise PoisonedDeviceError(key) from error
        finally:
            faulthandler.cancel_dump_traceback_later()
            row["seconds"] = round(time.monotonic() - started, 3)
            self.save("running")


def device_answers() -> bool:
    """Whether CUDA still works here: after an illegal access nothing in the process does."""
    import torch

    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        return False
    return True
