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
NewLayer = Annotated[
    str | None,
    typer.Option(
        help="Layer of the new data with the counts; X is X itself.",
        show_default="where the model had them",
    ),
]
NewUseRaw = Annotated[
    bool, typer.Option("--use-raw", help="The counts of the new data are in raw.")
]
AllowFractional = Annotated[
    bool,
    typer.Option(
        "--allow-fractional",
        help="Take corrected counts, no longer whole numbers (CellBender, SoupX, DecontX).",
    ),
]
AllowLinks = Annotated[
    bool,
    typer.Option(
        "--allow-links",
        help="Also read what files store in other files; only for files that you trust.",
    ),
]
NewAllowFractional = Annotated[
    bool | None,
    typer.Option(
        "--allow-fractional",
        help="Take corrected counts, no longer whole numbers.",
        show_default="if the model did",
    ),
]
Genome = Annotated[str | None, typer.Option(help="Which genome of a 10x file that holds several.")]
GeneNames = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="Column of var that names the genes.", show_default="its index"
    ),
]
NewGeneNames = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN", help="Column of var that names the genes.", show_default="the model's"
    ),
]
Genes = Annotated[
    Path | None,
    typer.Option(
        help="Text file with the genes to use, one per line.",
        show_default="all that the files share",
    ),
]
MemoryLimit = Annotated[
    str | None, typer.Option(help="Memory that streaming from disk may take, such as 2GB.")
]
NTopGenes = Annotated[
    int | None, typer.Option(help="Use so many of the most variable genes (seurat_v3).")
]
Residence = Annotated[
    str, typer.Option(help="Where the counts are kept: auto, device, host or disk.")
]
BatchKey = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of obs that names the batch of each cell; several times for combinations."
    ),
]
BatchKeyOf = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE=COLUMN",
        help='Another such column, of that file alone: its path, or its name in obs["file"].',
    ),
]
BatchPerFile = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Make each file a batch, in a new column of obs."),
]
LabelsKey = Annotated[
    list[str] | None,
    typer.Option(
        help="Column of obs that names the label of each cell; several times for combinations."
    ),
]
LearnedLibrary = Annotated[
    bool,
    typer.Option(
        "--learned-library", help="Library size as a latent variable, not the total count."
    ),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write the curves for TensorBoard too.")
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same run.")]
Color = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Column of obs or gene to colour the latent space by; several times for several.",
    ),
]
NoPlots = Annotated[bool, typer.Option("--no-plots", help="Draw no pictures.")]
