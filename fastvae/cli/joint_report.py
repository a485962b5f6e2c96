"""The report of ``fastvae info`` on several files as one data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .._memory import available_memory
from ..data.joint import match_genes, open_files
from ..data.opening import FileFrames
from ..data.request import Source, Wanted
from ..data.sources.slots import Slot
from .info import describe_column, table


def describe_joint(paths: Sequence[Path], slot: Slot) -> str:
    """Return the report on all files together; counts are read only where the format needs it.

    Raises
    ------
    InputError
        They cannot be read, or have no genes in common.
    """
    wanted = Wanted(slot=slot)
    memory = available_memory() or Source().streaming_memory()
    files = open_files(paths, wanted, memory)
    genes, _ = match_genes(files, None)
    obs = FileFrames(tuple(files), wanted).obs
    rows = [("together", f"{len(files)} files")]
    rows += [("cells", f"{len(obs):,}"), ("genes", f"{len(genes.names):,} in common")]
    rows += [("", f"{file.name}: {file.n_cells:,} cells") for file in files]
    if any(file.cell_names()[0] != obs.index[0] for file in files[:1]):
        rows.append(("cell names", f"in several files; joined they are such as {obs.index[0]!r}"))
    rows += [(f"obs[{str(name)!r}]", describe_column(obs[name])) for name in obs.columns]
    rows.append(("", "--batch-per-file NAME makes each file a batch"))
    return table(rows)
