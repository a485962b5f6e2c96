"""The report of ``fastvae info``: on a data set, on several as one, or on a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._memory import available_memory
from ..data.categories import category_name
from ..data.joint import match_genes, open_files
from ..data.keys import in_words
from ..data.likely_columns import few_categories, likely_columns
from ..data.opening import FileFrames
from ..data.reading import read_slot
from ..data.request import Source, Wanted
from ..data.sources.slots import Slot
from ..data.sources.stored_file import read_outline
from ..errors import InputError
from ..model.saving import CONFIG, WEIGHTS, read_config
from ..model.setup import Setup
from .user_errors import as_options

if TYPE_CHECKING:
    import pandas as pd


def describe(path: Path, slot: Slot) -> str:
    """Return the report on `path`, data or a model; data have their counts in `slot`.

    Raises
    ------
    InputError
        It is neither, or it cannot be read.
    """
    if path.is_dir() and any((path / name).exists() for name in (CONFIG, WEIGHTS)):
        if slot != Slot(allow_links=slot.allow_links):
            raise InputError(f"{path} is a trained model; {slot} can be asked for of data only")
        return _describe_run(path)
    return _describe_data(path, slot)


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
    rows += [(f"obs[{str(name)!r}]", _describe_column(obs[name])) for name in obs.columns]
    rows += _likely(obs)
    rows.append(("", "--batch-per-file NAME makes each file a batch"))
    return _table(rows)


def _table(rows: list[tuple[str, str]]) -> str:
    """Return one line per row, with the values in one column."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def _describe_data(path: Path, slot: Slot) -> str:
    problem = None
    extra: list[tuple[str, str]] = []
    try:
        adata = read_slot(path, slot)
        counts, obs, var = adata.X, adata.obs, adata.var
    except InputError as error:
        if path.suffix != ".h5ad" or not path.is_file():
            raise
        problem, counts = error, None
    if path.suffix == ".h5ad":
        obs, all_genes, extra = _other_parts(path, problem, slot)
        var = all_genes if counts is None else var
    rows = [("file", str(path)), ("cells", f"{len(obs):,}"), ("genes", f"{len(var):,}")]
    if counts is not None:
        rows += _describe_counts(counts, str(slot))
    else:
        rows.append((f"{slot} as counts", f"no: {as_options(str(problem))}"))
    rows += extra
    rows += [(f"obs[{str(name)!r}]", _describe_column(obs[name])) for name in obs.columns]
    return _table(rows + _likely(obs))


def _likely(obs: pd.DataFrame) -> list[tuple[str, str]]:
    """Name the columns that are likely batches and labels."""
    batches, labels = likely_columns(obs)
    rows = []
    if batches:
        rows.append(("likely batches", f"{', '.join(batches)}: --batch-key {batches[0]}"))
    if labels:
        rows.append(("likely labels", f"{', '.join(labels)}: --labels-key {labels[0]}"))
    return rows


def _other_parts(
    path: Path, problem: InputError | None, slot: Slot
) -> tuple[pd.DataFrame, pd.DataFrame, list[tuple[str, str]]]:
    """Return obs, var and what else an .h5ad has, without reading a matrix."""
    try:
        outline = read_outline(path, slot)
    except InputError as error:
        # The error of `read` about the same file comes first.
        raise (problem or error) from None
    n_raw = outline.n_raw_genes
    extra = [("layers", ", ".join(outline.layers) or "none")]
    extra.append(("raw", "none" if n_raw is None else f"{n_raw:,} genes"))
    return outline.obs, outline.var, extra


def _describe_counts(counts: Any, slot: str) -> list[tuple[str, str]]:
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    density = counts.nnz / max(counts.shape[0] * counts.shape[1], 1)
    whole = bool(np.all(counts.data == np.rint(counts.data)))
    fractions = "" if whole else ", with some values that are not whole numbers"
    rows = [
        (f"{slot} as counts", f"yes{fractions}"),
        ("non-zero", f"{100 * density:.2f} % of the entries"),
        ("counts", f"{counts.data.min():g} to {counts.data.max():g} where not zero"),
        (
            "total per cell",
            f"median {np.median(totals):,.0f}, {totals.min():,.0f} to {totals.max():,.0f}",
        ),
    ]
    empty = int(np.count_nonzero(totals == 0))
    if empty:
        rows.append(("empty cells", f"{empty:,} (kept; they get a finite latent position)"))
    return rows


def _describe_column(column: pd.Series) -> str:
    """Describe a column of obs, and say whether it can be a batch key."""
    kind = str(column.dtype).lower()
    values = column.dropna().unique()
    n_values = len(values)
    whole = kind.startswith(("int", "uint"))
    if kind.startswith("float"):
        whole = n_values > 0 and all(float(value).is_integer() for value in values)
    if whole:
        text = f"{n_values:,} different whole numbers"
    elif kind.startswith("float"):
        text = str(column.dtype)
    else:
        text = f"{n_values:,} {'category' if n_values == 1 else 'categories'}"
    missing = int(column.isna().sum())
    if missing:
        return f"{text}, missing for {missing:,} cells"
    if few_categories(column):
        shown = ", ".join(category_name(value) for value in values[:4])
        text += f" ({shown}{', ...' if n_values > 4 else ''}); can be a --batch-key"
    return text


def _describe_run(folder: Path) -> str:
    config = read_config(folder)
    try:
        setup = Setup.from_config(config)
        training = dict(config["training"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG} is damaged ({error}); train again") from error
    genes = ", ".join(setup.gene_names[:5])
    more = ", ..." if len(setup.gene_names) > 5 else ""
    rows = [
        ("model", f"{folder} (saved by fastvae {config.get('fastvae_version')})"),
        ("genes", f"{len(setup.gene_names):,}: {genes}{more}"),
    ]
    keyed = (
        ("batches", setup.batch_key, setup.batch_categories),
        ("labels", setup.labels_key, setup.label_categories),
    )
    for name, key, categories in keyed:
        shown = f"{len(categories)} in {in_words(key)}: {', '.join(categories)}"
        rows.append((name, shown if key is not None else "none"))
    rows += setup.covariate_rows()
    rows.append(("counts from", str(setup.slot)))
    rows += [(name, str(value)) for name, value in vars(setup.options).items()]
    rows += [(name, str(value)) for name, value in config.get("origin", {}).items()]
    if not training:
        return _table([*rows, ("training", "none yet")])
    for name, value in training.items():
        if name == "settings":
            rows += [(option, str(chosen)) for option, chosen in value.items()]
        elif isinstance(value, float):
            rows.append((name, f"{value:.2f}"))
        else:
            rows.append((name, str(value)))
    return _table(rows)
