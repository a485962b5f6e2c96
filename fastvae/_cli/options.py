"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Layer = Annotated[str | None, typer.Option(help="Take the counts from this layer instead of X.")]
UseRaw = Annotated[bool, typer.Option("--use-raw", help="Take the counts from raw instead of X.")]
Genome = Annotated[str | None, typer.Option(help="Which genome of a 10x file that holds several.")]
Genes = Annotated[
    Path | None,
    typer.Option(help="Text file with the genes to use, one per line.  [default: all common]"),
]
MemoryLimit = Annotated[
    str | None, typer.Option(help="Memory that streaming from disk may take, such as 2GB.")
]
NTopGenes = Annotated[
    int | None, typer.Option(help="Use so many of the most variable genes (seurat_v3).")
]
