"""Genes are matched by their stable ids, and by name only where that is what there is."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from count_data import dense_counts, write_mtx_folder
from typer.testing import CliRunner

from fastvae import Model
from fastvae.cli import app
from fastvae.data import read
from fastvae.data.genes import Genes, columns_of
from fastvae.data.opening import open_data
from fastvae.data.request import Source, Wanted
from fastvae.errors import InputError

SMALL: dict[str, Any] = {"n_latent": 2, "n_hidden": 4}
SYMBOLS = [f"G{i}" for i in range(13)]
SYMBOLS[3] = SYMBOLS[9] = "TBCE"
"""Two genes have one symbol."""
IDS = [f"ENSG{i:011d}" for i in range(13)]
IN_ORDER = np.arange(13)
SWAPPED = np.array([0, 9, 2, 1, 4, 5, 6, 7, 8, 3, 10, 12, 11])
"""The same genes in another order, the two of one symbol among them."""


def _data(order: np.ndarray, seed: int = 0) -> AnnData:
    """Cells with their genes in this order; var has symbols that are unique, and ids."""
    counts = dense_counts(seed=seed)
    counts[:, 3] += 20  # so that swapped genes would show
    return AnnData(
        sp.csr_matrix(counts[:, order]),
        obs=pd.DataFrame({"batch": ["b", "c"] * 20}, index=[f"{seed}-{i}" for i in range(40)]),
        var=pd.DataFrame(
            {"gene_ids": [IDS[i] for i in order]},
            index=anndata.utils.make_index_unique(pd.Index([SYMBOLS[i] for i in order])),
        ),
    )


def _folder(folder: Path, order: np.ndarray) -> Path:
    """The same as Cell Ranger writes it."""
    adata = _data(order)
    write_mtx_folder(folder, adata.X.toarray(), symbols=[SYMBOLS[i] for i in order])
    lines = [f"{IDS[i]}\t{SYMBOLS[i]}\tGene Expression\n" for i in order]
    (folder / "features.tsv").write_text("".join(lines))
    return folder


def _files(kind: str, folder: Path) -> list[Path]:
    paths = []
    for name, order in (("A", np.arange(13)), ("B", SWAPPED)):
        if kind == "folder":
            paths.append(_folder(folder / name, order))
            continue
        paths.append(folder / f"{name}.{kind}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(_data(order), {"h5ad": "write_h5ad", "zarr": "write_zarr"}[kind])(paths[-1])
    return paths


def _fastvae(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("kind", ["folder", "h5ad", "zarr"])
def test_identical_cells_have_identical_positions(kind: str, tmp_path: Path) -> None:
    paths = _files(kind, tmp_path)
    run = tmp_path / "run"
    _fastvae("train", *paths, "--batch-per-file", "sample", "--max-epochs", 2, "-o", run)
    latent = anndata.read_h5ad(run / "latent.h5ad").obsm["X_fastvae"]
    np.testing.assert_allclose(latent[:40], latent[40:], atol=1e-6)
    assert np.ptp(latent, axis=0).min() > 0.01
    for path in paths:
        _fastvae("embed", run, path, "-o", tmp_path / "e.h5ad", "--overwrite")
        alone = anndata.read_h5ad(tmp_path / "e.h5ad").obsm["X_fastvae"]
        np.testing.assert_allclose(alone, latent[:40], atol=1e-6)
    one = Model(paths[0], **SMALL).fit(2, seed=0, progress=False)
    expected = one.get_latent_representation()
    one.save(tmp_path / "one")
    loaded = Model.load(tmp_path / "one", paths[1])
    for found in (
        one.get_latent_representation(paths[1]),
        one.get_latent_representation(read(paths[1])),
        one.get_latent_representation([paths[1]]),
        loaded.get_latent_representation(),
        Model.load_query(paths[1], one, freeze="decoder").get_latent_representation(),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("residence", ["host", "disk"])
@pytest.mark.parametrize("genes", [None, [IDS[9], IDS[3], IDS[0]], ["TBCE", "G0", "TBCE-1"]])
def test_counts_of_a_gene_are_those_of_its_id(
    tmp_path: Path, residence: str, genes: list[str] | None
) -> None:
    paths = _files("h5ad", tmp_path)
    store, frames = open_data(paths, Wanted(gene_names=genes), Source(residence))
    ids = genes if genes and genes[0] in IDS else list(frames.var["gene_ids"])
    if genes == ["TBCE", "G0", "TBCE-1"]:  # by the names of the first file
        assert ids == [IDS[3], IDS[0], IDS[9]]
    assert list(frames.var["gene_ids"]) == ids
    assert list(frames.var.index) == list(store.gene_names)
    crow, col, values = store.rows(np.arange(80))
    counts = sp.csr_matrix((values, col, crow), shape=(80, len(ids))).toarray()
    whole = _data(np.arange(13)).X.toarray()[:, [IDS.index(name) for name in ids]]
    np.testing.assert_array_equal(counts, np.concatenate([whole, whole]))


def test_random_sets_of_genes_are_matched_as_by_a_table() -> None:
    """Against pandas' own join on the ids, for random subsets, orders and names."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        sides = []
        for _ in range(2):
            some = rng.permutation(40)[: rng.integers(5, 40)]
            symbols = pd.Index([f"S{i % 30}" for i in some])  # 10 symbols have two genes
            ids = [f"ENSG{i:011d}" for i in some]
            names = anndata.utils.make_index_unique(symbols)
            sides.append(pd.DataFrame({"gene_ids": ids}, index=names))
        wanted, have = (Genes.of(var) for var in sides)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = columns_of(wanted, have)
        column = pd.Series(np.arange(len(have.names)), index=sides[1]["gene_ids"])
        expected = column.reindex(sides[0]["gene_ids"]).fillna(-1).astype(int)
        by_id = expected.to_numpy() >= 0
        np.testing.assert_array_equal(found[by_id], expected[by_id])
        # What no id finds may be found by a symbol that has one gene on either side.
        for number in np.flatnonzero(~by_id & (found >= 0)):
            name = wanted.names[number]
            assert have.names[found[number]] == name
            assert not {f"{name}-1", name.removesuffix("-1")} & {*wanted.names, *have.names} - {
                name
            }


def test_models_saved_without_ids_match_by_name_and_say_what_is_unsure(tmp_path: Path) -> None:
    one = Model(_data(np.arange(13)), **SMALL).fit(1, seed=0, progress=False)
    one.save(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["gene_ids"] == IDS
    for name in ("gene_ids", "batch_per_file", "file_tail"):
        del config["data"][name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    old = Model.load(tmp_path / "run")
    np.testing.assert_array_equal(
        old.get_latent_representation(_data(np.arange(13))), one.get_latent_representation()
    )
    with pytest.warns(UserWarning, match=r"2 genes are matched by symbols that .*'TBCE', 'TBCE-1'"):
        old.get_latent_representation(_data(SWAPPED))
    certain = _data(SWAPPED)[:, [name for name in _data(SWAPPED).var_names if "TBCE" not in name]]
    with pytest.raises(InputError, match="2 of the model's 13 genes are not in the data: 'TBCE'"):
        old.get_latent_representation(certain.copy())


@pytest.mark.parametrize("ids_of", ["none", "first", "second"])
def test_files_without_ids_say_what_is_unsure(tmp_path: Path, ids_of: str) -> None:
    paths = []
    for name, order in (("first", np.arange(13)), ("second", SWAPPED)):
        adata = _data(order)
        if name != ids_of:
            del adata.var["gene_ids"]
        paths.append(tmp_path / f"{name}.h5ad")
        adata.write_h5ad(paths[-1])
    with pytest.warns(UserWarning, match=r"second\.h5ad: 2 genes are matched by symbols that"):
        store, _ = open_data(paths, Wanted(), Source())
    assert store.n_genes == 13


def test_ids_meet_ids_in_the_place_of_symbols() -> None:
    """Wherever the ids are, in var or as its index, and with versions or not."""
    model = Model(_data(np.arange(13)), **SMALL).fit(1, seed=0, progress=False)
    latent = model.get_latent_representation()
    adata = _data(SWAPPED)
    adata.var_names = adata.var["gene_ids"]
    del adata.var["gene_ids"]
    np.testing.assert_allclose(model.get_latent_representation(adata), latent, atol=1e-6)
    back = Model(adata, **SMALL).fit(1, seed=0, progress=False)
    np.testing.assert_allclose(
        back.get_latent_representation(_data(np.arange(13))),
        back.get_latent_representation(),
        atol=1e-6,
    )
    adata.var_names = [f"{name}.7" for name in adata.var_names]
    with pytest.warns(UserWarning, match=r"13 genes .* another version, such as 'ENSG0+\.7' for"):
        found = model.get_latent_representation(adata)
    np.testing.assert_allclose(found, latent, atol=1e-6)


def _renamed(names: list[str], ids: list[str] | None = None) -> AnnData:
    adata = _data(np.arange(13))
    adata.var = pd.DataFrame(index=names)
    if ids is not None:
        adata.var["gene_ids"] = ids
    return adata


PLAIN = [f"Gene{i}" for i in range(13)]
MOUSE = [name.replace("ENSG", "ENSMUSG") for name in IDS]


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (_renamed(PLAIN), _renamed(IDS), r"symbols are wanted, and the genes of the data have ids"),
        (_renamed(IDS), _renamed(PLAIN), r"ids are wanted, and the genes of the data have symbols"),
        (
            _renamed(PLAIN),
            _renamed([name.upper() for name in PLAIN]),
            r"other letters \('GENE0' for 'Gene0'\): human symbols .* mouse .* orthologs",
        ),
        (_renamed(IDS), _renamed(MOUSE), r"another species \(ENSMUSG\.\.\. for ENSG\.\.\.\)"),
        (_renamed(IDS), _renamed(PLAIN, MOUSE), r"another species \(ENSMUSG"),
        (
            _renamed(PLAIN, IDS),
            _renamed(PLAIN, IDS[1:] + IDS[:1]),
            r"ids and names of genes in the data contradict .*13 have the id of one",
        ),
    ],
    ids=["ids for symbols", "symbols for ids", "case", "species", "species of ids", "contradict"],
)
def test_genes_that_do_not_fit_are_explained(model: AnnData, data: AnnData, message: str) -> None:
    trained = Model(model, **SMALL).fit(1, seed=0, progress=False)
    with pytest.raises(InputError, match=message):
        trained.get_latent_representation(data)
    with pytest.raises(InputError, match=message):
        Model.load_query(data, trained, freeze="decoder")


def test_what_is_matched_in_two_ways_is_said() -> None:
    model = Model(_renamed(PLAIN, IDS), **SMALL).fit(1, seed=0, progress=False)
    ids = [*IDS[:11], "ENSG00000000099", IDS[12]]
    with pytest.warns(UserWarning, match=r"1 genes are matched by name though .* differ: 'Gene11'"):
        model.get_latent_representation(_renamed(PLAIN, ids))
    names = [PLAIN[1], PLAIN[0], *PLAIN[2:]]
    with pytest.warns(UserWarning, match=r"2 genes are matched by id though .*'Gene0', 'Gene1'"):
        model.get_latent_representation(_renamed(names, IDS))
    numbers = [str(i) for i in range(13)]  # no ids: the rows of a table
    model = Model(_renamed(PLAIN, numbers), **SMALL).fit(1, seed=0, progress=False)
    model.get_latent_representation(_renamed(PLAIN, numbers[::-1]))


def test_files_with_few_genes_in_common_are_warned_of(tmp_path: Path) -> None:
    first, second = _renamed(PLAIN), _renamed([*PLAIN[:4], *(n.upper() for n in PLAIN[4:])])
    for name, adata in (("a", first), ("b", second)):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    with pytest.warns(UserWarning, match=r"b\.h5ad has 4 genes in common .* left out; .* letters"):
        store, _ = open_data(paths, Wanted(), Source())
    assert list(store.gene_names) == PLAIN[:4]


def _by_column(order: np.ndarray = IN_ORDER) -> AnnData:
    """Genes that a column alone names well: the index has repeated names, one of them none."""
    adata = _data(order)
    symbols = [SYMBOLS[i] for i in order]
    adata.var = pd.DataFrame(
        {"ensembl": [IDS[i] for i in order], "symbol": symbols, "n": np.arange(13.0)},
        index=[f"row{i}" for i in range(13)],
    )
    adata.var.loc["row0", "symbol"] = None
    return adata


def test_a_column_names_the_genes(tmp_path: Path) -> None:
    path = tmp_path / "x.h5ad"
    _by_column().write_h5ad(path)
    for source in (path, _by_column()):
        names = list(read(source, gene_names="symbol").var_names)
        assert names == ["row0", *SYMBOLS[1:9], "TBCE-1", *SYMBOLS[10:]]
        assert list(read(source, gene_names="symbol").var["var_names"][:2]) == ["row0", "row1"]
        assert list(read(source, gene_names="ensembl").var_names) == IDS
        assert list(read(source, gene_names="n").var_names) == [str(i) for i in range(13)]
        with pytest.raises(InputError, match=r"no column 'symbl' \(gene_names=\); .*mean 'symbol'"):
            read(source, gene_names="symbl")
    folder = _folder(tmp_path / "folder", SWAPPED)
    assert list(read(folder, gene_names="gene_ids").var_names) == [IDS[i] for i in SWAPPED]


def test_names_that_repeat_in_the_index_are_no_harm(tmp_path: Path) -> None:
    adata = _by_column()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.var_names = ["same"] * 13
        adata.write_h5ad(tmp_path / "x.h5ad")
    for source in (adata, tmp_path / "x.h5ad"):
        with pytest.raises(InputError, match=r"duplicate genes: 'same'.* pass gene_names="):
            Model(source, **SMALL)
        assert Model(source, gene_names="ensembl", **SMALL).gene_names == IDS


@pytest.mark.parametrize("residence", ["host", "disk"])
def test_the_model_keeps_the_column(tmp_path: Path, residence: str) -> None:
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for path, order in zip(paths, (np.arange(13), SWAPPED), strict=True):
        _by_column(order).write_h5ad(path)
    run = tmp_path / "run"
    _fastvae(
        "train", *paths, "--batch-per-file", "f", "--gene-names", "ensembl", "-o", run,
        "--max-epochs", 1, "--residence", residence,
    )  # fmt: skip
    assert Model.load(run).gene_names == IDS
    assert "genes by var['ensembl']" in _fastvae("info", run)
    latent = anndata.read_h5ad(run / "latent.h5ad")
    assert list(latent.var_names) == IDS
    whole = latent.obsm["X_fastvae"]
    np.testing.assert_allclose(whole[:40], whole[40:], atol=1e-6)

    # The same cells, their genes by that column, by another that is named, or by the index.
    other = _by_column(SWAPPED)
    other.var = other.var.rename(columns={"ensembl": "accession"})
    again = tmp_path / "again" / "b.h5ad"
    again.parent.mkdir()
    other.write_h5ad(again)
    plain = _by_column(SWAPPED)
    plain.var = pd.DataFrame(index=[IDS[i] for i in SWAPPED])
    with pytest.raises(InputError, match=r"var\['accession'\] has them: pass gene_names='acc"):
        Model.load(run).get_latent_representation(again)
    _fastvae("embed", run, again, "--gene-names", "accession", "-o", tmp_path / "e.h5ad")
    found = [anndata.read_h5ad(tmp_path / "e.h5ad").obsm["X_fastvae"]]
    plain.obs["f"] = "b.h5ad"
    model = Model.load(run)
    found.append(model.get_latent_representation(plain))
    with pytest.raises(InputError, match="no column 'ensembl'"):
        model.get_latent_representation(plain, gene_names="ensembl")
    for each in found:
        np.testing.assert_allclose(each, whole[40:], atol=1e-6)
    table = tmp_path / "de.csv"
    _fastvae(
        "de", run, again, "--gene-names", "accession", "--groupby", "batch", "-o", table,
        "--n-samples", 50,
    )  # fmt: skip
    assert set(pd.read_csv(table)["gene"]) == set(IDS)
    _fastvae(
        "map", run, again, "--gene-names", "accession", "--batch-key", "batch",
        "-o", tmp_path / "mapped", "--max-epochs", 1,
    )  # fmt: skip
    assert Model.load(tmp_path / "mapped").gene_names == IDS


def test_symbols_from_a_column_keep_the_ids_of_the_index(tmp_path: Path) -> None:
    """As in files of CELLxGENE: ids as index, symbols in a column."""
    adatas = []
    for order in (np.arange(13), SWAPPED):
        adata = _data(order)
        adata.var = pd.DataFrame(
            {"feature_name": [SYMBOLS[i] for i in order]}, index=[IDS[i] for i in order]
        )
        adatas.append(adata)
    model = Model(adatas[0], gene_names="feature_name", **SMALL).fit(1, seed=0, progress=False)
    assert model.gene_names[9] == "TBCE-1"
    expected = model.get_latent_representation()
    for other in (adatas[1], _data(SWAPPED)):
        np.testing.assert_allclose(model.get_latent_representation(other), expected, atol=1e-6)
    adatas[1].write_h5ad(tmp_path / "x.h5ad")
    _fastvae(
        "convert", tmp_path / "x.h5ad", "--gene-names", "feature_name", "-o", tmp_path / "x.zarr"
    )
    found = anndata.read_zarr(tmp_path / "x.zarr").var
    assert list(found.index[:3]) == ["G0", "TBCE", "G2"]
    assert list(found["var_names"]) == [IDS[i] for i in SWAPPED]
    alone = Model.load_query(tmp_path / "x.zarr", model, freeze="decoder")
    order = [alone._store.cell_names.tolist().index(name) for name in adatas[1].obs_names]
    np.testing.assert_allclose(alone.get_latent_representation(cells=order), expected, atol=1e-6)
