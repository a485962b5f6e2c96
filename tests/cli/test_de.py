"""``fastvae de``: table and picture, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import run
from small_models import small_data

from fastvae import Model
from fastvae.errors import InputError
from fastvae.plots import plot_volcano
from fastvae.plots.figures import volcano_figure


def run_de(*arguments: Any, code: int = 0) -> Any:
    return run("de", *arguments, code=code)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    small_data().write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    model = Model(data, batch_key="batch", n_latent=3, n_hidden=16)
    model.fit(20, batch_size=32, seed=0, progress=False, learning_rate=1e-2, device="cpu")
    model.save(folder)
    return folder


QUESTION = ["--groupby", "cell_type", "--n-samples", "300", "--device", "cpu"]


def test_table_is_what_the_class_answers(data: Path, trained: Path, tmp_path: Path) -> None:
    table = tmp_path / "new" / "markers.csv"
    shown = run_de(trained, data, "-o", table, *QUESTION, "--fdr", 0.7, "--delta", 0.1).output
    model = Model.load(trained, data, device="cpu")
    expected = model.differential_expression(
        groupby="cell_type", n_samples_overall=300, fdr_target=0.7, delta=0.1
    )
    found = pd.read_csv(table, index_col="gene")
    pd.testing.assert_frame_equal(found, expected, check_names=False, rtol=1e-6, check_dtype=False)
    assert sorted(path.name for path in table.parent.iterdir()) == ["markers.csv", "markers.png"]
    assert (table.parent / "markers.png").read_bytes()[:4] == b"\x89PNG"
    first = expected[expected["group1"] == "type_0"]
    marked = int(first["is_de_fdr_0.7"].sum())
    assert marked > 0
    assert f"type_0 vs Rest: {marked} of 30 genes; {first.index[0]}, {first.index[1]}" in shown


def test_chosen_groups_streamed_from_disk(data: Path, trained: Path, tmp_path: Path) -> None:
    options = ["--group1", "type_2", "--group1", "type_0", "--group2", "type_1"]
    options += ["--mode", "vanilla", "--batch-correction", "--seed", 3]
    disk = ["--residence", "disk", "--memory-limit", "1GB"]
    run_de(trained, data, "-o", tmp_path / "a.csv", *QUESTION, *options, *disk)
    model = Model.load(trained, data, device="cpu")
    expected = model.differential_expression(
        groupby="cell_type",
        group1=["type_2", "type_0"],
        group2="type_1",
        mode="vanilla",
        batch_correction=True,
        n_samples_overall=300,
        seed=3,
    )
    found = pd.read_csv(tmp_path / "a.csv", index_col="gene")
    assert list(found["comparison"].unique()) == ["type_2 vs type_1", "type_0 vs type_1"]
    keys = ["comparison"]
    found, expected = (part.set_index(keys, append=True).sort_index() for part in (found, expected))
    np.testing.assert_allclose(found["proba_m1"], expected["proba_m1"], atol=2.5 / 300)
    np.testing.assert_allclose(found["raw_mean1"], expected["raw_mean1"])


def test_nothing_is_overwritten_unasked(data: Path, trained: Path, tmp_path: Path) -> None:
    table, picture = tmp_path / "a.csv", tmp_path / "a.png"
    picture.write_text("mine")
    refused = run_de(trained, data, "-o", table, *QUESTION, code=2)
    assert f"output file {picture} already exists" in " ".join(refused.stderr.split())
    assert picture.read_text() == "mine"
    assert not table.exists()
    run_de(trained, data, "-o", table, *QUESTION, "--group1", "type_0", "--overwrite")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    before = table.read_bytes()
    run_de(trained, data, "-o", table, *QUESTION, code=2)
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--groupby", "celltype"], "did you mean 'cell_type'"),
        (["--groupby", "cell_type", "--group1", "T"], "there are 'type_0', 'type_1', 'type_2'"),
        (["--groupby", "cell_type", "--min-cells", 10_000], "has 10000 cells or more"),
        (["--groupby", "cell_type", "--mode", "lfc"], "mode must be"),
    ],
)
def test_refusals_leave_nothing(
    data: Path, trained: Path, tmp_path: Path, options: list[Any], message: str
) -> None:
    shown = run_de(trained, data, "-o", tmp_path / "a.csv", *options, code=2).stderr
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_other_names_are_refused(data: Path, trained: Path, tmp_path: Path) -> None:
    shown = run_de(trained, data, "-o", tmp_path / "a.xlsx", *QUESTION, code=2).stderr
    assert "the table is written as CSV" in " ".join(shown.split())


def table(n_comparisons: int) -> pd.DataFrame:
    """Genes that change by -3 to 3, the larger the more certain; marked beyond 2."""
    change = np.linspace(-3, 3, 61)
    frame = pd.DataFrame(
        {
            "lfc_median": change,
            "proba_not_de": np.where(np.abs(change) < 2.95, 10.0 ** -np.abs(change), 0.0),
            "delta": 0.5,
            "is_de_fdr_0.05": np.abs(change) > 2.01,
        },
        index=[f"g{number}" for number in range(61)],
    )
    parts = [frame.assign(comparison=f"{k} vs Rest") for k in range(n_comparisons)]
    return pd.concat(parts)


def test_volcano_shows_every_gene_where_it_belongs() -> None:
    figure = volcano_figure(table(1), names=4)
    (axis,) = figure.axes
    (points,) = axis.collections
    drawn = np.asarray(points.get_offsets())
    drawn = drawn[np.argsort(drawn[:, 0])]
    np.testing.assert_allclose(drawn[:, 0], np.linspace(-3, 3, 61))
    expected = np.abs(drawn[:, 0])
    expected[[0, -1]] = 4.0  # certain: drawn at 1e-4
    np.testing.assert_allclose(drawn[:, 1], expected, atol=1e-9)
    colours = {tuple(colour) for colour in np.round(points.get_facecolors(), 3)}
    assert len(colours) == 3
    assert axis.get_title() == "0 vs Rest: 20 genes"
    assert sorted(line.get_xdata()[0] for line in axis.lines) == [-0.5, 0.5]
    names = {text.get_text() for text in axis.texts}
    assert {"g0", "g60"} <= names <= {f"g{k}" for k in [*range(10), *range(51, 61)]}
    assert len(names) == 4


def test_volcano_of_many_comparisons_and_of_vanilla(tmp_path: Path) -> None:
    figure = volcano_figure(table(15))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(titles) == 12
    assert figure.get_suptitle() == "The first 12 of 15 comparisons"
    scales = np.array([1e-3, 4e-3, 0.0])
    plain = pd.DataFrame(
        {"scale1": scales, "scale2": 1e-3, "bayes_factor": [0.1, -2.0, 3.0]}, index=list("abc")
    )
    (points,) = volcano_figure(plain).axes[0].collections
    np.testing.assert_allclose(
        points.get_offsets(), [[0, 0.1], [2, 2], [np.log2(1e-9), 3]], atol=1e-9
    )
    plot_volcano(plain, tmp_path / "v.svg")
    assert "<svg" in (tmp_path / "v.svg").read_text()


def test_volcano_of_something_else() -> None:
    with pytest.raises(InputError, match="needs the columns lfc_median and proba_not_de"):
        volcano_figure(pd.DataFrame({"score": [1.0]}))
    with pytest.raises(InputError, match="there is no gene to draw"):
        volcano_figure(table(1).iloc[:0])


def test_weighted_draws_without_outliers(data: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    chosen = ["--group1", "type_0", "--group2", "type_1"]
    weighted = ["--weights", "importance", "--filter-outlier-cells"]
    run_de(trained, data, "-o", tmp_path / "a.csv", *QUESTION, *chosen, *weighted)
    ask: dict[str, Any] = {"groupby": "cell_type", "group1": "type_0", "group2": "type_1"}
    model = Model.load(trained, data, device="cpu")
    uniform = model.differential_expression(**ask, n_samples_overall=300)
    expected = model.differential_expression(
        **ask, n_samples_overall=300, weights="importance", filter_outlier_cells=True
    )
    found = pd.read_csv(tmp_path / "a.csv", index_col="gene")
    np.testing.assert_allclose(found["lfc_mean"], expected["lfc_mean"], rtol=1e-6)
    assert np.abs(found["lfc_mean"] - uniform["lfc_mean"].loc[found.index]).max() > 1e-3
