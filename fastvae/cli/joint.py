"""`Joint`: what ``fastvae map`` writes about the query and its reference together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .._files import WriteError, atomic_path
from ..errors import InputError
from .run_folder import JOINT, JOINT_PICTURE, LABELS, MANY_CELLS

if TYPE_CHECKING:
    import pandas as pd

    from ..model.joint_latent import Rule
    from ..model.model import Model
    from ..model.reference_cells import ReferenceCells
    from ..report.pictures import PictureOptions


@dataclass(frozen=True, eq=False)
class Joint:
    """The reference's cells, and which of their labels the query gets.

    Attributes
    ----------
    run
        Folder of the reference.
    known
        Its cells; None where there are none to compare with.
    why_none
        Why there are none.
    labels
        Column or columns with labels; None transfers none.
    rule
        How neighbours vote.
    """

    run: Path
    known: ReferenceCells | None
    why_none: str
    labels: list[str] | None
    rule: Rule

    @classmethod
    def checked(
        cls,
        run: Path,
        output: Path,
        labels: Sequence[str] | None,
        freeze: bool | str,
        max_uncertainty: float | None,
        n_neighbors: int,
    ) -> Joint:
        """Check before training what is needed after it.

        Raises
        ------
        InputError
            The reference has no such labels, or no positions; an option does not fit.
        """
        from ..model.joint_latent import Rule
        from ..model.latent_file import LATENT
        from ..model.reference_cells import reference_cells

        if output.resolve() == run.resolve():
            raise InputError(f"{output} is the reference itself; choose another folder")
        rule = Rule(n_neighbors, max_uncertainty)
        if max_uncertainty is not None and not labels:
            raise InputError("--max-uncertainty is of transferred labels; name them with --labels")
        if freeze is False:
            why = "--freeze none leaves no latent space in common with the reference"
            if labels:
                raise InputError(f"{why}, and so no labels; choose all, decoder or encoder")
            return cls(run, None, why, None, rule)
        if not labels and not (run / LATENT).is_file():
            return cls(run, None, f"{run / LATENT} is missing", None, rule)
        known = reference_cells(run)
        if labels:
            known.labels(list(labels))
        return cls(run, known, "", list(labels) if labels else None, rule)

    def write(self, model: Model, folder: Path, pictures: PictureOptions) -> list[str]:
        """Write the joint file, its picture and the table of labels; return what to say."""
        from ..report.pictures import draw_joint

        if self.known is None:
            return [f"no {JOINT}: {self.why_none}"]
        n_cells = len(self.known.latent) + model._own_store().n_cells
        if pictures.plots and not pictures.quiet and n_cells > MANY_CELLS:
            typer.echo("computing the UMAP of reference and query", err=True)
        try:
            table = model.write_joint_latent(
                folder / JOINT,
                self.known,
                self.labels,
                n_neighbors=self.rule.n_neighbors,
                max_uncertainty=self.rule.max_uncertainty,
                umap=pictures.plots,
                overwrite=True,
            )
            if table is not None:
                with atomic_path(folder / LABELS) as temporary:
                    table.to_csv(temporary, index_label="cell")
            if pictures.plots:
                draw_joint(folder / JOINT, folder / JOINT_PICTURE, pictures, model._setup.batch_key)
        except WriteError as error:
            raise WriteError(f"{error}. The mapped model is saved in {folder}") from error
        return [] if table is None else summary(table)


def summary(table: pd.DataFrame) -> list[str]:
    """Return lines about transferred labels."""
    from ..model.joint_latent import UNKNOWN

    unknown = table["label"].str.lower() == UNKNOWN.lower()
    counts = table["label"][~unknown].value_counts()
    counts = counts[counts > 0]
    named = ", ".join(f"{name} {number:,}" for name, number in counts.head(5).items())
    lines = [
        f"labels of {len(table) - unknown.sum():,} of {len(table):,} cells"
        + (f", {unknown.sum():,} {UNKNOWN}" if unknown.any() else "")
        + f"; median uncertainty {table['uncertainty'].median():.2f}",
        f"  {named}" + (f" and {len(counts) - 5} more labels" if len(counts) > 5 else ""),
    ]
    return lines
