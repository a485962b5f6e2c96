"""Minibatches: which cells, in which order, with which numbers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from count_data import annotated, dense_counts

from fastvae.data import CountStore, Minibatches, read
from fastvae.errors import InputError


@pytest.fixture(name="store", scope="module")
def fixture_store() -> CountStore:
    counts = dense_counts()
    counts[11] = 0
    adata = read(annotated(sp.csr_matrix(counts)))
    return CountStore.from_anndata(adata, batch_key="batch", labels_key="cell_type")


def _order(loader: Minibatches) -> list[int]:
    return [int(cell) for minibatch in loader for cell in minibatch.cells]


@pytest.mark.parametrize("shuffle", [False, True])
def test_numbers_of_every_cell(store: CountStore, shuffle: bool) -> None:
    loader = Minibatches(store, batch_size=7, shuffle=shuffle)
    seen = []
    for minibatch in loader:
        cells = minibatch.cells
        seen.extend(cells)
        x = minibatch.x
        assert x.layout == torch.sparse_csr
        assert x.dtype == torch.float32
        assert cells.dtype == np.int64
        np.testing.assert_array_equal(x.to_dense().numpy(), store.counts[cells].toarray())
        for column, values in (
            (minibatch.batch_index, store.batch_codes[cells]),
            (minibatch.y, store.label_codes[cells]),
            (minibatch.local_l_mean, store.log_library_mean[store.batch_codes[cells]]),
            (minibatch.local_l_var, store.log_library_var[store.batch_codes[cells]]),
        ):
            np.testing.assert_array_equal(column.numpy(), values[:, None])
            assert column.numpy().dtype == values.dtype
    assert sorted(seen) == list(range(40))
    assert (seen == list(range(40))) is not shuffle


def test_gather_is_exact_for_int64_pointers_and_any_order(store: CountStore) -> None:
    wide = store.counts.copy()
    wide.indptr, wide.indices = wide.indptr.astype(np.int64), wide.indices.astype(np.int64)
    cells = np.array([39, 11, 0, 5, 5, 11])
    for counts in (store.counts, wide):
        other = CountStore(**{**vars(store), "counts": counts})
        crow, col, values = other.rows(cells)
        assert crow.dtype == col.dtype == np.int32
        gathered = sp.csr_matrix((values, col, crow), shape=(6, 13)).toarray()
        np.testing.assert_array_equal(gathered, store.counts.toarray()[cells])


def test_order_follows_seed_and_epoch_only(store: CountStore) -> None:
    loader = Minibatches(store, batch_size=8, shuffle=True, seed=3)
    first = _order(loader)
    torch.manual_seed(99)
    np.random.default_rng(1).random(5)
    assert _order(loader) == first
    loader.set_epoch(1)
    second = _order(loader)
    assert second != first
    loader.set_epoch(0)
    assert _order(loader) == first
    again = Minibatches(store, batch_size=13, shuffle=True, seed=3)
    again.set_epoch(1)
    assert _order(again) == second
    assert _order(Minibatches(store, batch_size=8, shuffle=True, seed=4)) != first


@pytest.mark.parametrize(
    ("n_cells", "options", "sizes"),
    [
        (40, {"batch_size": 16}, [16, 16, 8]),
        (40, {"batch_size": 39}, [39, 1]),
        (40, {"batch_size": 39, "shuffle": True}, [40]),
        (40, {"batch_size": 13, "shuffle": True}, [13, 13, 14]),
        (40, {"batch_size": 13, "shuffle": True, "drop_last": True}, [13, 13, 13]),
        (40, {"batch_size": 20, "drop_last": True}, [20, 20]),
        (1, {"batch_size": 8, "shuffle": True}, [1]),
        (3, {"batch_size": 1, "shuffle": True}, [1, 1, 1]),
        (3, {"batch_size": 100}, [3]),
    ],
)
def test_sizes(store: CountStore, n_cells: int, options: dict, sizes: list[int]) -> None:
    loader = Minibatches(store, np.arange(n_cells), **options)
    assert [len(minibatch.cells) for minibatch in loader] == sizes
    assert len(loader) == len(sizes)


def test_a_selection_keeps_its_order(store: CountStore) -> None:
    cells = np.array([5, 3, 30, 11], dtype=np.uint16)
    assert _order(Minibatches(store, cells, batch_size=3)) == [5, 3, 30, 11]
    assert sorted(_order(Minibatches(store, cells, batch_size=3, shuffle=True))) == [3, 5, 11, 30]


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (np.array([], dtype=int), {}, "cells is empty"),
        (np.array([40]), {}, r"rows outside 0\.\.39"),
        (np.array([-1]), {}, r"rows outside 0\.\.39"),
        (np.ones(40, dtype=bool), {}, r"got bool.*np\.flatnonzero"),
        (None, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (None, {"batch_size": 41, "drop_last": True}, "leaves no minibatch"),
    ],
)
def test_options_that_make_no_sense(
    store: CountStore, cells: np.ndarray | None, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Minibatches(store, cells, **{"batch_size": 8, **options})


def test_first_minibatch_of_a_process_is_silent() -> None:
    script = (
        "import warnings; warnings.simplefilter('error');"
        "warnings.filterwarnings('ignore', category=DeprecationWarning, module='(?!fastvae)');"
        "import numpy as np;"
        "from fastvae.data import *;"
        "store = CountStore.from_anndata(read(np.ones((4, 3))));"
        "x = next(iter(Minibatches(store, batch_size=2))).x;"
        "print((x.to_dense() * 2).sum().item(), (x @ x.to_dense().T).sum().item())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (result.stdout.strip(), result.stderr) == ("12.0 12.0", "")


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_every_cell_once(store: CountStore, shuffle: bool, world_size: int) -> None:
    loaders = [
        Minibatches(store, batch_size=4, shuffle=shuffle, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    orders = [_order(loader) for loader in loaders]
    assert sorted(cell for order in orders for cell in order) == list(range(40))
    sizes = [len(order) for order in orders]
    assert max(sizes) - min(sizes) <= 1
    with pytest.raises(InputError, match="rank must be from 0 to world_size - 1, got 2 of 2"):
        Minibatches(store, batch_size=4, rank=2, world_size=2)


def test_a_position_within_an_epoch_can_be_resumed(store: CountStore) -> None:
    loader = Minibatches(store, batch_size=8, shuffle=True, seed=3)
    loader.set_epoch(5)
    whole = _order(loader)
    assert loader.state_dict() == {"epoch": 5, "position": 0}
    seen = []
    for minibatch in loader:
        seen.extend(minibatch.cells)
        if len(seen) == 16:
            state = loader.state_dict()
            break
    assert state == {"epoch": 5, "position": 2}
    other = Minibatches(store, batch_size=8, shuffle=True, seed=3)
    other.load_state_dict(state)
    other.set_epoch(5)
    assert seen + _order(other) == whole
    assert _order(other) == whole  # once only
    with pytest.raises(InputError, match="position is minibatch 9, and an epoch has 5"):
        other.load_state_dict({"epoch": 5, "position": 9})
