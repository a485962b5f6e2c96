"""The table of mixing: the scores of the report, for any two spaces."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastvae.errors import InputError
from fastvae.report import mixing_table
from fastvae.report.mixing import mixing_scores

RNG = np.random.default_rng(0)
BATCH = np.repeat(["a", "b"], 60)
LABELS = np.tile(["T", "B", "unknown"], 40)
APART = RNG.normal(size=(120, 3)) + 50.0 * (BATCH == "b")[:, None]
MIXED = RNG.normal(size=(120, 2)) + 50.0 * (LABELS == "T")[:, None]


def test_batches_apart_and_batches_mixed() -> None:
    table = mixing_table(APART, MIXED, BATCH)
    (row,) = table.to_dict("records")
    assert row["before"] == 1.0
    assert row["after"] == pytest.approx(row["chance"], abs=0.05)
    assert row["chance"] == pytest.approx(59 / 119)
    assert table.index.name == "measure"
    assert row["good"].startswith("near chance")


def test_labels_give_the_measures_of_the_report() -> None:
    table = mixing_table(APART, MIXED, pd.Series(BATCH), pd.Categorical(LABELS))
    codes = np.select([LABELS == "B", LABELS == "T"], [0, 1], -1)
    scores = mixing_scores({"before": APART, "after": MIXED}, (BATCH == "b").astype(int), codes)
    assert list(table.index) == [score.name for score in scores]
    assert len(scores) == 3
    for column in ("before", "after", "chance"):
        np.testing.assert_array_equal(table[column], [getattr(score, column) for score in scores])
    assert table["after"].iloc[1] == 1.0


def test_missing_labels_are_left_out() -> None:
    missing = np.where(LABELS == "unknown", None, LABELS)
    pd.testing.assert_frame_equal(
        mixing_table(APART, MIXED, BATCH, missing), mixing_table(APART, MIXED, BATCH, LABELS)
    )


def test_one_batch_and_no_label_leave_nothing_to_measure() -> None:
    assert mixing_table(APART, MIXED, np.full(120, "a")).empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((APART[:9], MIXED, BATCH), "before has 9 cells and after has 120; give the same cells"),
        ((APART, MIXED[:, 0], BATCH), "after must be a finite array"),
        ((APART * np.nan, MIXED, BATCH), "before must be a finite array"),
        (("x", MIXED, BATCH), "before must be an array"),
        ((APART, MIXED, BATCH[:5]), "batch must have one value for each of 120 cells"),
        ((APART, MIXED, BATCH, "cell_type"), "labels must have one value for each of 120 cells"),
    ],
)
def test_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mixing_table(*arguments)
