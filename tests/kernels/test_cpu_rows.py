"""Rows copied by the CPU library, against scipy."""

import numpy as np
import pytest
import scipy.sparse as sp
from fastvae.kernels.gather.cpu import gather_rows


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("wanted", [[], [0], [7, 7, 2, 0, 19], list(range(20))], ids=len)
def test_rows_in_any_order(index, wanted):
    rng = np.random.default_rng(3)
    dense = rng.poisson(0.4, (20, 33)).astype(np.float32)
    dense[7] = 0
    counts = sp.csr_matrix(dense)
    parts = counts.indptr.astype(index), counts.indices.astype(index), counts.data
    crow, col, values = gather_rows(*parts, np.array(wanted, dtype=np.int64))
    expected = counts[wanted] if wanted else sp.csr_matrix((0, 33), dtype=np.float32)
    assert [a.dtype for a in (crow, col, values)] == [np.int32, np.int32, np.float32]
    np.testing.assert_array_equal(crow, expected.indptr)
    np.testing.assert_array_equal(col, expected.indices)
    np.testing.assert_array_equal(values, expected.data)


def test_rows_that_do_not_exist_and_arrays_of_other_types_are_refused():
    parts = np.array([0, 1, 2], np.int32), np.array([0, 1], np.int32), np.ones(2, np.float32)
    for rows in ([2], [-1]):
        with pytest.raises(IndexError, match=r"are not all in 0\.\.1"):
            gather_rows(*parts, np.array(rows))
    for wrong in (
        (parts[0].astype(np.int64), *parts[1:]),
        (*parts[:2], np.ones(2)),
        (*parts[:2], np.ones(4, np.float32)[::2]),
    ):
        with pytest.raises(ValueError, match="which the library does not take"):
            gather_rows(*wrong, np.array([0]))
