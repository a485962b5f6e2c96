"""The order of blocks: every block once, every pool a sample of the whole file."""

import numpy as np
import pytest

from fastvae.data.order import BlockOrder, _in_stretches


@pytest.mark.parametrize(("n_blocks", "n_stretches"), [(1, 1), (103, 10), (100, 10), (7, 10)])
def test_every_block_once_in_an_order_of_the_seed(n_blocks, n_stretches):
    orders = [
        _in_stretches(n_blocks, n_stretches, np.random.default_rng(seed)) for seed in (0, 0, 1)
    ]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(n_blocks))
    np.testing.assert_array_equal(orders[0], orders[1])
    assert n_blocks <= n_stretches or not np.array_equal(orders[0], orders[2])


def test_each_block_comes_at_any_time():
    n_blocks, n_seeds = 23, 4000
    orders = [_in_stretches(n_blocks, 5, np.random.default_rng(s)) for s in range(n_seeds)]
    places = np.argsort(orders, axis=1)
    # The mean place of a block has a standard error of at most 6.7 / sqrt(4000) = 0.11.
    np.testing.assert_allclose(places.mean(axis=0), (n_blocks - 1) / 2, atol=0.6)
    assert (places.min(axis=0) <= 1).all()
    assert (places.max(axis=0) >= n_blocks - 2).all()


def test_pools_of_a_sorted_file_have_its_composition():
    rng = np.random.default_rng(0)
    n_cells, n_types, pool, block = 100_000, 8, 4096, 64
    types = np.sort(rng.integers(0, n_types, n_cells))
    cells = np.sort(rng.permutation(n_cells)[:90_000])
    edges = np.append(np.arange(0, n_cells, block), n_cells)
    seen, shares = [], []
    for epoch in (0, 1):
        order = BlockOrder(cells, edges, 3, epoch, pool)
        seen.append(order.at(0, len(cells)))
        for start in range(0, len(cells) - pool, pool):
            inside = types[order.at(start, start + pool)]
            shares.append(np.bincount(inside, minlength=n_types) / pool)
    for order_of_epoch in seen:
        np.testing.assert_array_equal(np.sort(order_of_epoch), cells)
    assert not np.array_equal(*seen)
    off = np.abs(np.array(shares) * n_types - 1)
    # Blocks taken wholly at random: off by a quarter on average, by more than the whole at most.
    assert off.mean() < 0.1
    assert off.max() < 0.35
