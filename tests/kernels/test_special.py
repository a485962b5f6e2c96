"""The Triton kernels' elementary functions against 50 digits, over the ranges they are used in."""

import pytest

pytest.importorskip("triton")
from special_errors import CASES, largest_error


@pytest.mark.parametrize("name", CASES)
def test_error(name):
    assert largest_error(name) <= CASES[name][-1]
