"""Every input is opened once and its counts are checked once, wherever they are kept."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from count_data import annotated, dense_counts, write_mtx_folder, write_v3_h5

from fastvae.data import checks, read
from fastvae.data.opening import open_data
from fastvae.data.request import Source, Wanted
from fastvae.data.sources import arrays
from fastvae.errors import InputError

WANTED = Wanted(batch_key="batch")


class _Counted:
    """How often files were opened, and counts judged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.checked: list[str] = []
        counted, finish = self, checks.CountCheck.finish

        class File(h5py.File):
            def __init__(self, name: Any, *rest: Any, **options: Any) -> None:
                counted.opened.append(Path(name).name)
                super().__init__(name, *rest, **options)

        def finished(check: checks.CountCheck, **options: Any) -> None:
            counted.checked.append(Path(check._origin.source).name)
            finish(check, **options)

        monkeypatch.setattr(h5py, "File", File)
        monkeypatch.setattr(checks.CountCheck, "finish", finished)


def _h5ad(folder: Path, layout: str = "csr") -> Path:
    adata = annotated(sp.csr_matrix(dense_counts()))
    adata.X = {"csr": adata.X, "csc": adata.X.tocsc(), "dense": adata.X.toarray()}[layout]
    adata.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def _zarr(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        annotated(sp.csr_matrix(dense_counts())).write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


@pytest.mark.parametrize("layout", ["csr", "dense", "csc"])
@pytest.mark.parametrize("residence", ["auto", "host", "disk"])
@pytest.mark.filterwarnings("ignore:.*stored by gene")
def test_an_h5ad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, residence: str
) -> None:
    path = _h5ad(tmp_path, layout)
    counted = _Counted(monkeypatch)
    store, frames = open_data(path, WANTED, Source(residence))
    assert counted.opened == ["cells.h5ad"]
    assert counted.checked == ["cells.h5ad"]
    _, columns, values = store.rows(np.arange(40))
    found = sp.csr_matrix((values, columns, np.cumsum([0, *store.lengths()])), shape=(40, 13))
    np.testing.assert_array_equal(found.toarray(), dense_counts())
    assert list(frames.obs.columns) == ["batch", "cell_type"]


@pytest.mark.parametrize("form", ["cells.h5ad", "cells.zarr", "both"])
@pytest.mark.parametrize("residence", ["host", "disk"])
def test_every_entry_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, residence: str
) -> None:
    _zarr(tmp_path)
    _h5ad(tmp_path)
    forms = ["cells.h5ad", "cells.zarr"] if form == "both" else [form]
    n_read = dict.fromkeys(forms, 0)
    for name in ("read", "read_async"):
        read_part = getattr(arrays.StoredArray, name)

        def part(self: Any, start: int, stop: int, *rest: Any, _read: Any = read_part) -> Any:
            if self.where.endswith(", data"):
                n_read[Path(self.watch.source).name] += stop - start
            return _read(self, start, stop, *rest)

        monkeypatch.setattr(arrays.StoredArray, name, part)
    store, _ = open_data([tmp_path / name for name in forms], WANTED, Source(residence))
    assert n_read == dict.fromkeys(forms, np.count_nonzero(dense_counts()))
    assert store.n_stored == sum(n_read.values())


def test_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _h5ad(tmp_path)
    counted = _Counted(monkeypatch)
    np.testing.assert_array_equal(read(path).X.toarray(), dense_counts())
    assert (counted.opened, counted.checked) == (["cells.h5ad"], ["cells.h5ad"])


def test_several_kinds_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = dense_counts()
    tenx = write_v3_h5(tmp_path / "run.h5", counts, ["Gene Expression"] * 13)
    paths = [_h5ad(tmp_path), tenx, write_mtx_folder(tmp_path / "mtx", counts)]
    counted = _Counted(monkeypatch)
    store, _ = open_data(paths, Wanted(), Source("host"))
    assert sorted(counted.opened) == ["cells.h5ad", "run.h5"]
    assert len(counted.checked) == 3
    assert store.n_cells == 120


def test_counts_in_memory_are_warned_of_once(tmp_path: Path) -> None:
    tenx = write_v3_h5(tmp_path / "run.h5", dense_counts(), ["Gene Expression"] * 13)
    with h5py.File(tenx, "r+") as file:
        values = file["matrix/data"][:].astype(np.float32)
        values[5] = 2.5
        del file["matrix/data"]
        file["matrix/data"] = values
    _h5ad(tmp_path)
    with pytest.warns(UserWarning, match="are not whole numbers") as caught:
        open_data([tenx, tmp_path / "cells.h5ad"], Wanted(), Source("host"))
    assert len([w for w in caught if "not whole numbers" in str(w.message)]) == 1


@pytest.mark.parametrize("fault", [False, True])
def test_a_file_in_memory_is_let_go(tmp_path: Path, fault: bool) -> None:
    path = _h5ad(tmp_path)
    if fault:
        with h5py.File(path, "r+") as file:
            file["X/data"][3] = -1
        with pytest.raises(InputError, match="a negative value"):
            open_data(path, WANTED, Source("host"))
    else:
        store, frames = open_data(path, WANTED, Source("auto"))
        path.unlink()
        assert len(frames.obs) == store.n_cells == 40
    with h5py.File(path, "w") as file:  # HDF5 refuses that while it is open
        file["x"] = 1
