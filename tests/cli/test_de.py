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
from fastvae.cli.de import summary
from fastvae.errors import InputError
from fastvae.plots import dot_figure, plot_dots, plot_volcano, volcano_figure


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
    names = ["markers.csv", "markers.png", "markers_dots.png"]
    assert sorted(path.name for path in table.parent.iterdir()) == names
    for name in names[1:]:
        assert (table.parent / name).read_bytes()[:4] == b"\x89PNG"
    first = expected[expected["group1"] == "type_0"]
    seen = first[["non_zeros_proportion1", "non_zeros_proportion2"]].max(axis=1) >= 0.1
    marked = first[first["is_de_fdr_0.7"] & seen]
    up = (marked["lfc_median"] > 0).sum()
    assert 0 < up < len(marked)
    assert f"type_0 vs Rest: of 30 genes {up} up (" in shown
    assert f", {len(marked) - up} down (" in shown
    assert "comparison 1/3: type_0 vs Rest" in shown


def test_genes_of_few_cells_are_counted_apart(tmp_path: Path) -> None:
    result = seen_table()
    lines = summary(result, tmp_path / "a.csv", 0.1)
    assert lines[0] == (
        "0 vs Rest: of 61 genes 9 up (g59, g58, g57, g56, g55), 10 down (g0, g1, g2, g3, g4), "
        "1 more seen in fewer than 10% of the cells"
    )
    assert "10 up (g60, g59" in summary(result, tmp_path / "a.csv", 0.0)[0]
    many = table(25)
    assert summary(many, tmp_path / "a.csv", 0.1)[20] == (
        f"and 5 more comparisons, in {tmp_path / 'a.csv'}"
    )


def test_within_types_and_quiet(data: Path, trained: Path, tmp_path: Path) -> None:
    question = ["--groupby", "batch", "--group1", "batch_0", "--group2", "batch_1"]
    options = [*question, "--within", "cell_type", "--n-samples", 100, "--quiet"]
    result = run_de(trained, data, "-o", tmp_path / "a.csv", *options)
    assert result.stderr == ""
    model = Model.load(trained, data, device="cpu")
    expected = model.differential_expression(
        groupby="batch",
        group1="batch_0",
        group2="batch_1",
        within="cell_type",
        n_samples_overall=100,
    )
    found = pd.read_csv(tmp_path / "a.csv", index_col="gene")
    assert list(found["within"].unique()) == ["type_0", "type_1", "type_2"]
    np.testing.assert_allclose(found["lfc_mean"], expected["lfc_mean"], rtol=1e-6)
    assert "type_1: batch_0 vs batch_1: of 30 genes" in result.stdout


def test_a_dot_plot_of_nothing_is_left_out_and_said(
    data: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "a_dots.png").write_text("of another table")
    vanilla = [*QUESTION, "--mode", "vanilla", "--overwrite"]
    shown = run_de(trained, data, "-o", tmp_path / "a.csv", *vanilla).stdout
    assert "no dot plot: a dot plot needs the column lfc_median" in shown
    assert not (tmp_path / "a_dots.png").exists()


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
        (["--groupby", "batch", "--within", "celltype"], "within 'celltype' is not a column"),
        (["--groupby", "cell_type", "--min-pct", 10], "--min-pct must be at most 1"),
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
    colours = {tuple(colour) for colour in np.round(points.get_facecolors(), 3)[:, :3]}
    assert len(colours) == 3
    assert axis.get_title() == "0 vs Rest\n10 up, 10 down"
    assert sorted(line.get_xdata()[0] for line in axis.lines) == [-0.5, 0.5]
    names = {text.get_text() for text in axis.texts}
    assert {"g0", "g60"} <= names <= {f"g{k}" for k in [*range(10), *range(51, 61)]}
    assert len(names) == 4


def test_volcano_of_many_comparisons_and_of_vanilla(tmp_path: Path) -> None:
    figure = volcano_figure(table(61))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert len(titles) == 60
    assert figure.get_suptitle() == "The first 60 of 61 comparisons; the table has them all"
    assert volcano_figure(table(15)).get_suptitle() == ""
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


def seen_table() -> pd.DataFrame:
    """Two comparisons of `table`; g60 is seen in few cells, g59 in many of the second group."""
    result = table(2)
    result["non_zeros_proportion1"] = np.where(result.index.isin(["g60", "g59"]), 0.04, 0.5)
    result["non_zeros_proportion2"] = np.where(result.index == "g59", 0.6, 0.02)
    result["raw_normalized_mean1"] = np.arange(len(result)) / 10.0
    return result.assign(proba_de=1.0 - result["proba_not_de"])


def test_genes_of_few_cells_make_no_headline() -> None:
    for least, named, title in ((0.1, False, "9 up, 10 down"), (0.04, True, "10 up, 10 down")):
        axis = volcano_figure(seen_table(), names=4, min_pct=least).axes[0]
        assert ("g60" in {text.get_text() for text in axis.texts}) is named
        assert axis.get_title().endswith(title)
        assert len(axis.collections[0].get_offsets()) == 61  # drawn all the same


def test_dots_show_the_share_of_cells_and_the_level() -> None:
    figure = dot_figure(seen_table(), genes=2)
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["g59", "g58"]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0", "1"]
    (dots,) = axis.collections
    np.testing.assert_allclose(dots.get_sizes(), 140 * np.array([0.04, 0.5, 0.04, 0.5]))
    np.testing.assert_allclose(dots.get_array(), [0, 0, 1, 1])  # from the lowest to the highest
    pair = seen_table().assign(comparison="B vs T")
    figure = dot_figure(pair.iloc[:61], genes=3)
    (dots,) = figure.axes[0].collections
    np.testing.assert_allclose(dots.get_array(), np.linspace(-3, 3, 61)[[59, 58, 57]])


def test_dots_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs the column non_zeros_proportion1"):
        dot_figure(table(1))
    nothing = seen_table().assign(**{"is_de_fdr_0.05": False})
    with pytest.raises(InputError, match="no genes are marked as higher"):
        plot_dots(nothing, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


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
