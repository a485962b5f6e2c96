"""Options that several commands have, and the parts of a help page that they stand in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DATA, MODEL, TRAINING, FILES, EXPERT = PANELS = ("Data", "Model", "Training", "Files", "Expert")
"""The parts of a help page, in their order; what most people never need is under Expert."""

TrainedRun = Annotated[Path, typer.Argument(help="Folder that fastvae train wrote.")]
CellsOfModel = Annotated[
    list[Path], typer.Argument(help="Cells with the genes the model was trained on.")
]
RunOutput = Annotated[
    Path,
    typer.Option("--output", "-o", help="Folder to write the run to.", rich_help_panel=FILES),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace what is already there.", rich_help_panel=FILES),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=TRAINING)]
TrainingDevice = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:N or mps (Apple).", rich_help_panel=TRAINING)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=FILES)]
Layer = Annotated[
    str | None,
    typer.Option(help="Layer with the counts.", show_default="X", rich_help_panel=DATA),
]
UseRaw = Annotated[
    bool, typer.Option("--use-raw", help="Take the counts from raw.", rich_help_panel=DATA)
]
NewLayer = Annotated[
    str | None,
    typer.Option(
        help="Layer of the new data with the counts; X is X itself.",
        show_default="where the model had them",
        rich_help_panel=DATA,
    ),
]
NewUseRaw = Annotated[
    bool,
    typer.Option("--use-raw", help="The counts of the new data are in raw.", rich_help_panel=DATA),
]
AllowFractional = Annotated[
    bool,
    typer.Option(
        "--allow-fractional",
        help="Take corrected counts, no longer whole numbers (CellBender, SoupX, DecontX).",
        rich_help_panel=EXPERT,
    ),
]
AllowLinks = Annotated[
    bool,
    typer.Option(
        "--allow-links",
        help="Also read what files store in other files; only for files that you trust.",
        rich_help_panel=EXPERT,
    ),
]
NewAllowFractional = Annotated[
    bool | None,
    typer.Option(
        "--allow-fractional",
        help="Take corrected counts, no longer whole numbers.",
        show_default="if the model did",
        rich_help_panel=EXPERT,
    ),
]
Genome = Annotated[
    str | None,
    typer.Option(
        help="Which genome of a 10x file that holds several.",
        show_default="the only one",
        rich_help_panel=EXPERT,
    ),
]
GeneNames = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of var that names the genes.",
        show_default="its index",
        rich_help_panel=EXPERT,
    ),
]
NewGeneNames = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of var that names the genes.",
        show_default="the model's",
        rich_help_panel=EXPERT,
    ),
]
Genes = Annotated[
    Path | None,
    typer.Option(
        help="Text file with the genes to use, one per line.",
        show_default="all in common",
        rich_help_panel=EXPERT,
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        help="For streaming from disk, such as 2GB.",
        show_default="by what is free",
        rich_help_panel=EXPERT,
    ),
]
NTopGenes = Annotated[
    int | None,
    typer.Option(
        help="Variable genes to use (seurat_v3).",
        show_default="all",
        rich_help_panel=DATA,
    ),
]
Residence = Annotated[
    str,
    typer.Option(
        help="Where the counts are kept: auto, device, host or disk.", rich_help_panel=EXPERT
    ),
]
BatchKey = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of batches; repeat to combine.",
        show_default="one batch",
        rich_help_panel=DATA,
    ),
]
NewBatchKey = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of batches; repeat to combine.",
        show_default="the reference's",
        rich_help_panel=DATA,
    ),
]
BatchKeyOf = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE=COLUMN",
        help='Another such column, of that file alone: its path, or its name in obs["file"].',
        show_default="none",
        rich_help_panel=EXPERT,
    ),
]
BatchPerFile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Each file is a batch.",
        show_default="no",
        rich_help_panel=DATA,
    ),
]
LabelsKey = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN",
        help="Column with labels.",
        show_default="none",
        rich_help_panel=DATA,
    ),
]
CategoricalCovariates = Annotated[
    list[str] | None,
    typer.Option(
        "--categorical-covariate",
        metavar="COLUMN",
        help="Correct for categories; repeatable.",
        show_default="none",
        rich_help_panel=DATA,
    ),
]
ContinuousCovariates = Annotated[
    list[str] | None,
    typer.Option(
        "--continuous-covariate",
        metavar="COLUMN",
        help="Correct for numbers; repeatable.",
        show_default="none",
        rich_help_panel=DATA,
    ),
]
SizeFactor = Annotated[
    str | None,
    typer.Option(
        "--size-factor",
        metavar="COLUMN",
        help="Column with size factors.",
        show_default="library size",
        rich_help_panel=DATA,
    ),
]
LearnedLibrary = Annotated[
    bool,
    typer.Option(
        "--learned-library",
        help="Library size as a latent variable, not the total count.",
        rich_help_panel=EXPERT,
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard", help="Write the curves for TensorBoard too.", rich_help_panel=EXPERT
    ),
]
Seed = Annotated[int, typer.Option(help="Same seed, same run.", rich_help_panel=TRAINING)]
Color = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Column or gene to draw; repeatable.",
        show_default="batches and labels",
        rich_help_panel=FILES,
    ),
]
NoPlots = Annotated[
    bool, typer.Option("--no-plots", help="Draw no pictures.", rich_help_panel=FILES)
]
WriteInto = Annotated[
    bool,
    typer.Option(
        "--write-into",
        help='Add the latent space to the .h5ad of the cells itself, as obsm["X_fastvae"].',
        rich_help_panel=FILES,
    ),
]
