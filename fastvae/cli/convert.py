"""``fastvae convert``."""

from __future__ import annotations

from pathlib import Path

from .._memory import available_memory
from .._status import PercentLines, print_status
from ..data.convert import check_target, convert
from ..data.joint import open_files, stream
from ..data.opening import FileFrames
from ..data.request import Source, Wanted
from ..errors import InputError


def run_convert(
    data: list[Path],
    target: Path,
    wanted: Wanted,
    *,
    memory_limit: str | None,
    seed: int,
    shuffle: bool,
    overwrite: bool,
    quiet: bool,
) -> str:
    """Convert, with progress on standard error; return the text for the user.

    Raises
    ------
    InputError
        As `convert` and the readers.
    """
    check_target(target, overwrite=overwrite)
    if any(path.resolve() == target.resolve() for path in data):
        raise InputError(f"{target} is one of the inputs; choose another name")
    memory = Source("disk", memory_limit).streaming_memory()
    # A file stored by gene has to be transposed as a whole, whatever the limit.
    files = open_files(data, wanted, int(0.7 * (available_memory() or memory)))
    if not quiet:
        print_status("checking every count")
    store = stream(files, wanted, memory)
    frames = FileFrames(tuple(files), wanted)
    resumed = convert(
        store,
        frames,
        target,
        seed=seed,
        shuffle=shuffle,
        overwrite=overwrite,
        report=PercentLines(not quiet),
    )
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    cells = f"{store.n_cells:,} cells x {store.n_genes:,} genes, {size / 1e6:,.1f} MB"
    return f"{target}: {cells}{' (went on from where it had stopped)' if resumed else ''}"
