"""obs of several files: what `anndata.concat` makes of them, also in the files written of it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from count_data import annotated
from typer.testing import CliRunner

from fastvae import Model
from fastvae.cli import app
from fastvae.data.categories import category_name
from fastvae.data.opening import open_data
from fastvae.data.request import Source, Wanted
from fastvae.errors import InputError

N = 40
TURN = np.arange(N)


def _some(values: Any, dtype: Any = None) -> Any:
    """`values` in turn, every fifth missing."""
    found = pd.array([values[i % len(values)] for i in TURN], dtype=dtype)
    found[TURN % 5 == 4] = None
    return found


# Columns of every type that an .h5ad holds, without and with missing values.
COLUMNS: dict[str, Any] = {
    "bool": TURN % 2 == 0,
    "int64": TURN % 3,
    "int8": (TURN % 3).astype(np.int8),
    "uint16": (TURN % 3).astype(np.uint16),
    "float32": np.where(TURN % 5 == 4, np.nan, TURN / 2).astype(np.float32),
    "float64": TURN / 4,
    "text": np.array(["a", "b", "c"], dtype=object)[TURN % 3],
    "other text": np.array(["c", "d"], dtype=object)[TURN % 2],
    "boolean": _some([True, False], "boolean"),
    "Int64": _some([1, 2, 3], "Int64"),
    "UInt8": _some([1, 2, 3], "UInt8"),
    "categorical": pd.Categorical(np.array(["a", "b", None], dtype=object)[TURN % 3]),
    "other categorical": pd.Categorical(np.array(["x", "b"])[TURN % 2], categories=["x", "b", "y"]),
    "ordered": pd.Categorical(
        np.array(["lo", "hi"])[TURN % 2], categories=["lo", "hi"], ordered=True
    ),
    "whole categories": pd.Categorical(TURN % 2),
    "bool categories": pd.Categorical(TURN % 2 == 0),
}


def _file(path: Path, column: str | None, **more: Any) -> Path:
    adata = annotated()
    adata.obs_names = [f"{path.stem}-{i}" for i in range(N)]
    if column is not None:
        adata.obs["it"] = COLUMNS[column]
    adata.obs = pd.concat([adata.obs, pd.DataFrame(more, index=adata.obs_names)], axis=1)
    adata.write_h5ad(path)
    return path


def _concatenated(paths: list[Path]) -> pd.DataFrame:
    found: pd.DataFrame = anndata.concat(
        [anndata.read_h5ad(path) for path in paths], join="outer"
    ).obs
    return found


def _same_values(found: pd.Series, expected: pd.Series) -> None:
    """The same values at the same places, missing ones included, whatever holds them."""
    assert list(found.isna()) == list(expected.isna())
    there = ~expected.isna().to_numpy()
    assert [category_name(v) for v in found[there]] == [category_name(v) for v in expected[there]]


PAIRS = [
    *itertools.product(COLUMNS, COLUMNS),
    *((name, None) for name in COLUMNS),
    *((None, name) for name in COLUMNS),
]


PAIR_NAMES = {f"{one}_{two}".replace(" ", "_"): (one, two) for one, two in PAIRS}


@pytest.fixture(name="files", params=[2, 3])
def fixture_files(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """One column for each pair of types, all in two files; a third file has none of them."""
    paths = []
    for side in (0, 1):
        columns = {
            name: COLUMNS[pair[side]] for name, pair in PAIR_NAMES.items() if pair[side] is not None
        }
        paths.append(_file(tmp_path / f"{side}.h5ad", None, **columns))
    return [*paths, _file(tmp_path / "2.h5ad", None)][: request.param]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("residence", ["host", "disk"])
def test_every_pair_of_types_is_joined_as_by_anndata(files: list[Path], residence: str) -> None:
    _, frames = open_data(files, Wanted(), Source(residence))
    assert list(frames.obs["file"]) == [path.name for path in files for _ in range(N)]
    pd.testing.assert_frame_equal(frames.obs.drop(columns="file"), _concatenated(files))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("files", [3], indirect=True)
def test_missing_is_missing_in_everything_written(files: list[Path], tmp_path: Path) -> None:
    expected = _concatenated(files)
    model = Model(files, batch_key="batch", n_latent=2, n_hidden=4).fit(1, seed=0, progress=False)
    model.write_latent(tmp_path / "latent.h5ad")
    model.write_latent(tmp_path / "again.h5ad", files)
    target = tmp_path / "all.zarr"
    result = CliRunner().invoke(
        app, ["convert", *map(str, files), "-o", str(target), "--keep-order"]
    )
    assert result.exit_code == 0, result.output
    written = [anndata.read_h5ad(tmp_path / name).obs for name in ("latent.h5ad", "again.h5ad")]
    written.append(anndata.read_zarr(target).obs)
    for obs in written:
        assert list(obs.index) == list(expected.index)
        for name in PAIR_NAMES:
            _same_values(obs[name], expected[name])
            assert "nan" not in {str(v) for v in obs[name].dropna()}
            kind = expected[name].dtype
            if not isinstance(kind, pd.CategoricalDtype) and kind.kind != "O":
                # h5ad has no nullable floats: their missing values are NaN
                plain = getattr(kind, "numpy_dtype", kind) if kind.kind == "f" else kind
                assert obs[name].dtype == plain


@pytest.mark.parametrize("column", ["text", "categorical", "bool", "boolean", "Int64"])
def test_cells_without_a_group_are_in_none(tmp_path: Path, column: str) -> None:
    paths = [_file(tmp_path / "a.h5ad", column), _file(tmp_path / "b.h5ad", None)]
    model = Model(paths, batch_key="batch", n_latent=2, n_hidden=4).fit(1, seed=0, progress=False)
    table = model.differential_expression(groupby="it", n_samples_overall=50)
    named = {str(v) for v in pd.Series(COLUMNS[column]).dropna()}
    assert set(table["group1"]) == named
    with pytest.raises(InputError, match=r"group1 'nan' is not in obs\['it'\]"):
        model.differential_expression(groupby="it", group1="nan")


@pytest.mark.parametrize("key", ["batch_key", "labels_key"])
def test_batches_and_labels_may_not_be_missing(tmp_path: Path, key: str) -> None:
    paths = [_file(tmp_path / "a.h5ad", "text"), _file(tmp_path / "b.h5ad", "categorical")]
    with pytest.raises(InputError, match=r"b\.h5ad: obs\['it'\] .* is missing for 13 of 40 cells"):
        Model(paths, **{key: "it"})
    paths[1] = _file(tmp_path / "c.h5ad", None)
    with pytest.raises(InputError, match=r"c\.h5ad: obs has no column 'it'"):
        Model(paths, **{key: "it"})
