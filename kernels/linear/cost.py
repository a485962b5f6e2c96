"""Which layout of a minibatch moves fewer bytes through the Triton kernels: a count."""

from __future__ import annotations


def csr_pays(
    n: int,
    genes: int,
    hidden: int,
    stored: int,
    *,
    encoders: int = 1,
    tf32: bool = True,
) -> bool:
    """Whether a training step moves fewer bytes with CSR counts than with dense ones.

    With x dense, the gather writes it and log(1 + x), with the totals; the likelihood reads it once
    and the first layer of each encoder the logarithms twice: ``4 N G`` bytes each time. With x as
    CSR, those that cannot use nonzeros - the likelihood, the gradient of the first layer, and its
    product where that is not summed from nonzeros - write a dense matrix and read it, ``8 N G``
    bytes, from 8 bytes per entry; the gather writes 12 bytes per entry. So CSR pays only where the
    first layer is summed from nonzeros (`nonzeros_pay`).

    Parameters
    ----------
    n, genes, hidden
        Cells N, genes G and outputs of the first layer.
    stored
        Entries that there is memory for.
    encoders
        How many encoders see the counts: 1, or 2 with a learned library size.
    tf32
        Whether matrix products may round their factors to TF32.
    """
    summed = nonzeros_pay(n, genes, hidden, stored, tf32=tf32)
    dense = 4 * n * genes * (3 + 2 * encoders)
    laid_out = 1 + encoders * (1 if summed else 2)
    per_entry = 12 + 8 * (1 + 2 * encoders)
    return 8 * n * genes * laid_out + per_entry * stored < dense


# The machine that `nonzeros_pay` assumes: estimates for an H100, nothing measured.
MEMORY = 2.5e12  # bytes/s to and from device memory
CACHE = 4e12  # bytes/s of rows of the weight from the second-level cache
TF32, FLOAT32 = 2.5e14, 4e13  # operations/s in a matrix product
STEP = 0.8e-6  # seconds of one pass of `linear_kernel`: counts, then the rows they point to
STEP_ENTRIES = 16


def nonzeros_pay(n: int, genes: int, hidden: int, nnz: int, *, tf32: bool = True) -> bool:
    """Estimate whether the first layer is faster from its nonzeros than densified.

    From nonzeros: ``4 nnz H`` bytes of the weight from the cache and ``8 G H`` to transpose it, but
    never less than the passes of a row of mean length take. Densified: ``8 N G`` bytes written and
    read, and ``2 N G H`` operations. The constants above are estimates, not measured.

    Parameters
    ----------
    n, genes, hidden
        Cells N, genes G and outputs H of the layer.
    nnz
        Stored entries, or how many there is memory for: the host knows no other number.
    tf32
        Whether the matrix product may round its factors to TF32.
    """
    if n == 0 or nnz == 0:
        return True
    passes = -(-nnz // (n * STEP_ENTRIES))
    nonzeros = max(4 * nnz * hidden / CACHE, passes * STEP) + 8 * genes * hidden / MEMORY
    product = 2 * n * genes * hidden / (TF32 if tf32 else FLOAT32)
    return nonzeros <= 8 * n * genes / MEMORY + product
