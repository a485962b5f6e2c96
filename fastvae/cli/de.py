"""``fastvae de``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._files import WriteError, atomic_path, check_new_file
from ..errors import InputError, real_number
from .declared_options import with_declared_options
from .options import (
    CellsOfModel,
    Device,
    MemoryLimit,
    Overwrite,
    Quiet,
    Residence,
    TrainedRun,
)
from .slot_options import NewSlotOptions
from .user_errors import user_errors

if TYPE_CHECKING:
    import pandas as pd


SHOWN_GENES = 5
SHOWN_COMPARISONS = 20


@with_declared_options("de")
def de(
    run: TrainedRun,
    data: CellsOfModel,
    *,
    groupby: Annotated[
        list[str],
        typer.Option(help="Column of obs that names the groups; several times for combinations."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .csv to write, and two .png beside it.")
    ],
    group1: Annotated[
        list[str] | None,
        typer.Option(help="Group to test; several times for several.", show_default="each"),
    ] = None,
    group2: Annotated[
        str | None, typer.Option(help="Group to test against.", show_default="all other cells")
    ] = None,
    within: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Compare the groups in each category of this column by itself, such as cell_type.",
        ),
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
    min_pct: Annotated[
        float,
        typer.Option(
            help="Print and draw genes with counts in this share of a group; the table has all."
        ),
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    device: Device = "auto",
    residence: Residence = "auto",
    memory_limit: MemoryLimit = None,
    where: NewSlotOptions,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Find the genes that tell groups of cells apart."""
    with user_errors():
        text = run_de(
            run,
            data,
            output,
            overwrite=overwrite,
            device=device,
            min_pct=min_pct,
            reading={
                "residence": residence,
                "memory_limit": memory_limit,
                **where.arguments(),
            },
            groupby=groupby,
            group1=group1 or None,
            group2=group2,
            within=within or None,
            progress=not quiet,
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


def check_outputs(output: Path, *, overwrite: bool) -> tuple[Path, Path, Path]:
    """Return the table, and the volcano and dot plots beside it, before any work is done.

    Raises
    ------
    InputError
        One of them exists already or cannot be written, or the table is not named .csv.
    """
    if output.suffix != ".csv":
        raise InputError(f"{output}: the table is written as CSV; name it .csv")
    volcano = output.with_suffix(".png")
    return (
        check_new_file(output, overwrite=overwrite),
        check_new_file(volcano, overwrite=overwrite),
        check_new_file(volcano.with_stem(f"{output.stem}_dots"), overwrite=overwrite),
    )


def run_de(
    run: Path,
    data: list[Path],
    output: Path,
    *,
    overwrite: bool,
    device: str,
    min_pct: float,
    reading: dict[str, Any],
    **question: Any,
) -> str:
    """Test, write the table and the pictures, and return the text for the user.

    Raises
    ------
    InputError
        As `Model.load` and `Model.differential_expression`.
    """
    from ..model.model import Model
    from ..plots.figures import plot_dots, plot_volcano

    table, volcano, dots = check_outputs(output, overwrite=overwrite)
    least = real_number("min_pct", min_pct, most=1.0)
    model = Model.load(run, data, device=device, **reading)
    result = model.differential_expression(**question)
    with atomic_path(table) as temporary:
        result.to_csv(temporary, index_label="gene")
    plot_volcano(result, volcano, min_pct=least)
    written = [f"  {table}", f"  {volcano}"]
    dots.unlink(missing_ok=True)  # of another table
    try:
        plot_dots(result, dots, min_pct=least)
        written.append(f"  {dots}")
    except WriteError:
        raise
    except InputError as reason:
        written.append(f"  no dot plot: {reason}")
    return "\n".join([*summary(result, table, least), "written:", *written])


def summary(result: pd.DataFrame, table: Path, min_pct: float) -> list[str]:
    """Return a line for each comparison: how many genes are marked, and the first.

    Genes with counts in fewer than `min_pct` of the cells of both groups are counted apart.
    """
    from ..plots.volcano import comparisons_of

    parts = comparisons_of(result)
    lines = [f"{name}: {_headline(part, min_pct)}" for name, part in parts[:SHOWN_COMPARISONS]]
    more = len(parts) - SHOWN_COMPARISONS
    return [*lines, f"and {more} more comparisons, in {table}"] if more > 0 else lines


def _headline(part: pd.DataFrame, min_pct: float) -> str:
    from ..plots.dots import first_genes
    from ..plots.volcano import marked_genes, well_seen

    seen, marked = well_seen(part, min_pct), marked_genes(part)
    if marked is None:
        return ", ".join(map(str, part.index[seen][:SHOWN_GENES]))
    change = part["lfc_median"].to_numpy()
    texts = []
    for word, side in (("up", change > 0), ("down", change <= 0)):
        count = int((marked & seen & side).sum())
        names = first_genes(part, SHOWN_GENES, min_pct, up=word == "up")
        texts.append(f"{count:,} {word}" + (f" ({', '.join(names)})" if names else ""))
    rare = int((marked & ~seen).sum())
    if rare:
        texts.append(f"{rare:,} more seen in fewer than {min_pct:.0%} of the cells")
    return f"of {len(part):,} genes {', '.join(texts)}"
