"""``fastvae de``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._files import atomic_path, check_new_file
from ..errors import InputError
from .inputs import assignments
from .options import (
    AllowLinks,
    BatchKeyOf,
    Device,
    Genome,
    MemoryLimit,
    NewAllowFractional,
    NewGeneNames,
    NewLayer,
    NewUseRaw,
    Overwrite,
    Residence,
)
from .user_errors import user_errors

if TYPE_CHECKING:
    import pandas as pd


SHOWN_GENES = 5
SHOWN_COMPARISONS = 20


def de(
    run: Annotated[Path, typer.Argument(help="Folder that fastvae train wrote.")],
    data: Annotated[
        list[Path], typer.Argument(help="Cells with the genes the model was trained on.")
    ],
    groupby: Annotated[
        list[str],
        typer.Option(help="Column of obs that names the groups; several times for combinations."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .csv to write, and a .png beside it.")
    ],
    group1: Annotated[
        list[str] | None,
        typer.Option(help="Group to test; several times for several.", show_default="each"),
    ] = None,
    group2: Annotated[
        str | None, typer.Option(help="Group to test against.", show_default="all other cells")
    ] = None,
    mode: Annotated[str, typer.Option(help="change (log-fold changes) or vanilla.")] = "change",
    delta: Annotated[float, typer.Option(help="Log2-fold change that counts.")] = 0.25,
    fdr_target: Annotated[
        float, typer.Option("--fdr", help="False discovery rate that genes are marked at.")
    ] = 0.05,
    batch_correction: Annotated[
        bool, typer.Option("--batch-correction", help="Compare cells as if of the same batches.")
    ] = False,
    n_samples_overall: Annotated[
        int, typer.Option("--n-samples", help="Posterior draws per group.")
    ] = 5000,
    weights: Annotated[
        str,
        typer.Option(help="Weights of the draws: uniform, or importance (minutes, not seconds)."),
    ] = "uniform",
    filter_outlier_cells: Annotated[
        bool,
        typer.Option(
            "--filter-outlier-cells",
            help="Leave out a tenth of each group, the farthest out (needs scikit-learn).",
        ),
    ] = False,
    min_cells: Annotated[
        int, typer.Option(help="Size of the smallest group to test, in cells.")
    ] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    device: Device = "auto",
    residence: Residence = "auto",
    memory_limit: MemoryLimit = None,
    layer: NewLayer = None,
    use_raw: NewUseRaw = False,
    genome: Genome = None,
    allow_fractional: NewAllowFractional = None,
    allow_links: AllowLinks = False,
    gene_names: NewGeneNames = None,
    batch_key_of: BatchKeyOf = None,
    overwrite: Overwrite = False,
) -> None:
    """Find the genes that tell groups of cells apart."""
    with user_errors():
        text = run_de(
            run,
            data,
            output,
            overwrite=overwrite,
            device=device,
            reading={
                "residence": residence,
                "memory_limit": memory_limit,
                "layer": layer,
                "use_raw": use_raw,
                "genome": genome,
                "allow_fractional": allow_fractional,
                "allow_links": allow_links,
                "gene_names": gene_names,
                "batch_key_of": assignments(batch_key_of, "--batch-key-of"),
            },
            groupby=groupby,
            group1=group1 or None,
            group2=group2,
            mode=mode,
            delta=delta,
            fdr_target=fdr_target,
            batch_correction=batch_correction,
            n_samples_overall=n_samples_overall,
            weights=weights,
            filter_outlier_cells=filter_outlier_cells,
            min_cells=min_cells,
            seed=seed,
        )
        typer.echo(text)


def check_outputs(output: Path, *, overwrite: bool) -> tuple[Path, Path]:
    """Return the table and the picture beside it, before any work is done.

    Raises
    ------
    InputError
        One of them exists already or cannot be written, or the table is not named .csv.
    """
    if output.suffix != ".csv":
        raise InputError(f"{output}: the table is written as CSV; name it .csv")
    return (
        check_new_file(output, overwrite=overwrite),
        check_new_file(output.with_suffix(".png"), overwrite=overwrite),
    )


def run_de(
    run: Path,
    data: list[Path],
    output: Path,
    *,
    overwrite: bool,
    device: str,
    reading: dict[str, Any],
    **question: Any,
) -> str:
    """Test, write the table and the picture, and return the text for the user.

    Raises
    ------
    InputError
        As `Model.load` and `Model.differential_expression`.
    """
    from ..model.model import Model
    from ..plots.figures import plot_volcano

    table, picture = check_outputs(output, overwrite=overwrite)
    model = Model.load(run, data, device=device, **reading)
    result = model.differential_expression(**question)
    with atomic_path(table) as temporary:
        result.to_csv(temporary, index_label="gene")
    plot_volcano(result, picture)
    return "\n".join([*_summary(result), "written:", f"  {table}", f"  {picture}"])


def _summary(result: pd.DataFrame) -> list[str]:
    """Return a line for each comparison: how many genes are marked, and the first."""
    marks = [name for name in result.columns if name.startswith("is_de_fdr_")]
    lines = []
    for name in dict.fromkeys(result["comparison"]):
        part = result[result["comparison"] == name]
        first = ", ".join(map(str, part.index[:SHOWN_GENES]))
        if marks:
            lines.append(f"{name}: {int(part[marks[0]].sum()):,} of {len(part):,} genes; {first}")
        else:
            lines.append(f"{name}: {first}")
    more = len(lines) - SHOWN_COMPARISONS
    return [*lines[:SHOWN_COMPARISONS], f"and {more} more comparisons"] if more > 0 else lines
