"""Values of cells matched by the names of the cells, against pandas' own alignment."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvae.data.alignment import in_order_of, positions_of, values_of_cells
from fastvae.errors import InputError

NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=10)


@given(wanted=NAMES, there=NAMES)
def test_each_name_is_found_where_it_is_once(wanted: list[str], there: list[str]) -> None:
    positions, missing = positions_of(np.array(wanted, dtype=object), there)
    if wanted == there:
        assert positions.tolist() == list(range(len(wanted)))
        assert missing == []
        return
    single = {name for name in wanted if wanted.count(name) == 1 and there.count(name) == 1}
    assert missing == [name for name in wanted if name not in single]
    for name, position in zip(wanted, positions, strict=True):
        assert (position >= 0) == (name in single)
        if position >= 0:
            assert there[position] == name


@given(data=st.data(), n=st.integers(1, 20))
def test_a_series_is_brought_into_order(data: st.DataObject, n: int) -> None:
    names = np.array([f"cell{i}" for i in range(n)], dtype=object)
    order = data.draw(st.permutations(range(n)))
    series = pd.Series(np.arange(n) * 1.5, index=names)
    found = in_order_of(names, series.iloc[order], "x")
    pd.testing.assert_series_equal(found, series.reindex(names))


def test_names_of_another_type_and_default_indices() -> None:
    names = np.array(["0", "1", "2"], dtype=object)
    plain = pd.Series([5, 6, 7])
    assert in_order_of(names, plain, "x").tolist() == [5, 6, 7]
    with pytest.raises(InputError, match=r"x has no value, or several, for 3 of 3 cells \('0', "):
        in_order_of(names, pd.Series([5, 6, 7], index=[2, 1, 0]), "x")
    strings = pd.Series([5, 6, 7], index=pd.Index(["2", "1", "0"], dtype="string"))
    assert in_order_of(names, strings, "x").tolist() == [7, 6, 5]


def test_repeated_names_are_taken_in_their_order_alone() -> None:
    names = np.array(["a", "a", "b"], dtype=object)
    same = pd.Series([1, 2, 3], index=names)
    assert in_order_of(names, same, "x").tolist() == [1, 2, 3]
    with pytest.raises(InputError, match="for 2 of 3 cells"):
        in_order_of(names, same[::-1], "x")


def test_an_array_has_one_value_per_cell() -> None:
    names = np.array(["a", "b"], dtype=object)
    assert values_of_cells(names, np.array([3, 4]), "x").tolist() == [3, 4]
    assert values_of_cells(names, pd.Categorical(["u", None]), "x").isna().tolist() == [False, True]
    for wrong in (np.zeros(3), np.zeros((2, 1)), np.array(1.0)):
        with pytest.raises(InputError, match="x must have one value for each of the 2 cells, not"):
            values_of_cells(names, wrong, "x")
