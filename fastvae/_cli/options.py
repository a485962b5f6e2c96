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
CheckpointEvery = Annotated[
    int | None, typer.Option(metavar="EPOCHS", help="Checkpoint after so many epochs; they stay.")
]
CheckpointMinutes = Annotated[
    float, typer.Option(metavar="MINUTES", help="And after so many minutes, also within an epoch.")
]
KeepCheckpoints = Annotated[int, typer.Option(help="How many checkpoints stay.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from the newest checkpoint of the run in the folder."),
]
Residence = Annotated[
    str, typer.Option(help="Where the counts are kept: auto, device, host or disk.")
]
BatchKey = Annotated[
    str | None, typer.Option(help="Column of obs that names the batch of each cell.")
]
BatchKeyOf = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE=COLUMN", help="Another such column, of that file alone."),
]
LabelsKey = Annotated[
    str | None, typer.Option(help="Column of obs that names the label of each cell.")
]
EarlyStopping = Annotated[
    bool, typer.Option("--early-stopping", help="Stop when the validation ELBO no longer improves.")
]
LearnedLibrary = Annotated[
    bool,
    typer.Option(
        "--learned-library", help="Library size as a latent variable, not the total count."
    ),
]
