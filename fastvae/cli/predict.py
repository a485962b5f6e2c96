"""``fastvae predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .declared_options import with_declared_options
from .options import CellsOfModel, Device, Overwrite, TrainedRun
from .slot_options import NewSlotOptions
from .user_errors import user_errors


@with_declared_options("predict")
def predict(
    run: TrainedRun,
    data: CellsOfModel,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The .csv to write.")],
    soft: Annotated[
        bool, typer.Option("--soft", help="Also write the probability of every label.")
    ] = False,
    where: NewSlotOptions,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write the label of each cell of DATA, by a model that has learned labels."""
    with user_errors():
        import pandas as pd

        from .._files import atomic_path, check_new_file
        from ..errors import InputError
        from ..model.model import Model

        if output.suffix != ".csv":
            raise InputError(f"{output}: the table is written as CSV; name it .csv")
        target = check_new_file(output, overwrite=overwrite)
        model = Model.load(run, device=device)
        probabilities: Any = model.predict(data, soft=True, **where.arguments())
        labels = probabilities.idxmax(axis=1)
        table = pd.DataFrame({"label": labels, "probability": probabilities.max(axis=1)})
        if soft:
            table = pd.concat([table, probabilities], axis=1)
        with atomic_path(target) as temporary:
            table.to_csv(temporary, index_label="cell")
        typer.echo(f"{output}: labels of {len(labels):,} cells, {labels.nunique()} different ones")
