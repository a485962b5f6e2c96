"""Many damaged inputs, each tried in a child process: what comes out, crashes and hangs included.

``fuzzing.py MODULE MEGABYTES FOLDER`` is that child: it reads numbers of inputs, and for each calls
``MODULE.try_one(number, folder)``, which returns what came out in a word or raises. A `WrongAnswer`
and every other exception are faults; so are the end of the child and silence.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
START_SECONDS = 120  # imports, on a busy machine


class WrongAnswer(AssertionError):
    """What was read is not what the input holds."""


@dataclass
class Outcome:
    """What came of all inputs.

    Attributes
    ----------
    words
        How often `try_one` returned which word.
    faults
        By number of the input: ``"crash: ..."``, ``"hang: ..."``, ``"traceback: ..."`` or
        ``"wrong answer: ..."``.
    """

    words: Counter[str] = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        kinds = Counter(text.partition(":")[0] for text in self.faults.values())
        shown = "".join(f"\ninput {number}: {text}" for number, text in self.faults.items())
        return f"{dict(self.words)}, faults {dict(kinds)}{shown[:20000]}"


def rounds(short: int) -> int:
    """Return how many inputs to try: `short`, or FASTVAE_FUZZ."""
    return int(os.environ.get("FASTVAE_FUZZ", short))


def fuzz(
    module: str, numbers: Iterable[int], *, seconds: float = 20, megabytes: int = 1024
) -> Outcome:
    """Try inputs in a child, and in a new one after each that ends it or is silent.

    Parameters
    ----------
    module
        Of this folder, with ``try_one(number, folder)``.
    numbers
        Of the inputs; each makes its own, the same at every call.
    seconds
        After which one counts as a hang.
    megabytes
        That one may take beyond what the child takes before the first.
    """
    outcome, waiting = Outcome(), list(numbers)
    while waiting:
        with _child(module, megabytes) as child:
            while waiting and child.ready:
                number = waiting.pop(0)
                word, fault = child.ask(number, seconds)
                if fault:
                    outcome.faults[number] = fault
                else:
                    outcome.words[word] += 1
    return outcome


class _child:
    """A child, and the folder that it works in."""

    def __init__(self, module: str, megabytes: int) -> None:
        self.folder = tempfile.mkdtemp(prefix="fuzz")
        self.log = (Path(self.folder) / "log").open("w+b")
        command = [sys.executable, str(HERE / "fuzzing.py"), module, str(megabytes), self.folder]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )
        self.ready = True
        if self._line(START_SECONDS) is None:
            raise RuntimeError(f"the child for {module} did not start: {self._end()}")

    def __enter__(self) -> _child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, number: int, seconds: float) -> tuple[str, str]:
        """Return a word, or what went wrong; after a crash or a hang it is not `ready`."""
        self.process.stdin.write(f"{number}\n".encode())
        self.process.stdin.flush()
        line = self._line(seconds)
        if line is None:
            self.ready = False
            return "", self._end() if self.process.poll() is not None else f"hang: over {seconds} s"
        word, fault = json.loads(line)
        return word, fault

    def _line(self, seconds: float) -> bytes | None:
        readable, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if readable else b""
        if readable and not line:
            self.process.wait()
        return line or None

    def _end(self) -> str:
        code = self.process.poll()
        self.log.seek(0)
        how = signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"
        return f"crash: {how}\n{self.log.read()[-3000:].decode(errors='replace')}"


def _serve(module: str, megabytes: int, folder: Path) -> None:
    """Answer in lines of JSON; the pipe is kept apart from what anything prints."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    try_one = importlib.import_module(module).try_one
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=answers, flush=True)
    for number in _numbers():
        word, fault = "", ""
        work = folder / str(number)
        work.mkdir()
        try:
            word = try_one(number, work)
        except WrongAnswer as error:
            fault = f"wrong answer: {error}"
        except Exception:
            fault = f"traceback: {traceback.format_exc()[-3000:]}"
        shutil.rmtree(work, ignore_errors=True)
        print(json.dumps([word, fault]), file=answers, flush=True)


def _numbers() -> Iterator[int]:
    for line in sys.stdin:
        yield int(line)


if __name__ == "__main__":
    # The test's process may have asked for warnings as errors and a device; the child reads files.
    sys.modules["fuzzing"] = sys.modules["__main__"]
    _serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
