"""How many cells are decoded at once: a count of bytes."""

from __future__ import annotations

from ..counts import Counts

ROWS = 8  # cells in a block are a multiple of this, as the sums of the dispersion's gradient are


def cells_per_block(n: int, genes: int, heads: int, item: int, *, cache: int, least: int) -> int:
    """Return how many of N cells to decode at once.

    Of every block the logits of all heads, ``cells heads G`` numbers, are written once and passed
    over four times, and all weights and their gradients, ``2 heads G H`` numbers, are passed over
    twice. So one block is best where its logits stay in the cache, `cache` bytes of it. Beyond it
    there are at least `least` rows of logits: with fewer of them the weights would cost more than
    the logits. Blocks of one call are as even as they can be.

    Parameters
    ----------
    n, genes, heads
        Cells N, genes G, and heads, each with G logits per cell.
    item
        Bytes of a logit.
    cache
        Bytes that the logits of one block may take.
    least
        Rows of logits in a block, over all heads, where those of `least` take more than `cache`.
    """
    most = max(cache // max(1, item * heads * genes), least // heads) // ROWS * ROWS
    most = max(ROWS, most)
    if n <= most:
        return max(1, n)
    blocks = -(-n // most)
    return -(-n // (blocks * ROWS)) * ROWS


def cells_of(x: Counts, begin: int, end: int) -> Counts:
    """Return some of the cells of a minibatch."""
    if (begin, end) == (0, x.shape[0]):
        return x
    shape = end - begin, x.shape[1]
    if x.dense is not None:
        return Counts(shape, x.dense[begin:end])
    assert x.crow is not None
    assert x.col is not None
    assert x.values is not None
    crow = x.crow[begin : end + 1]
    if not crow.is_cpu:  # kernels find a row by crow; the host does not wait for the device
        return type(x)(shape, None, crow, x.col, x.values)
    first, last = int(crow[0]), int(crow[-1])
    return type(x)(shape, None, crow - first, x.col[first:last], x.values[first:last])
