"""Folders as tools and archives lay them out: read right, or answered with what to pass."""

from __future__ import annotations

import gzip
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from count_data import dense_counts, write_mtx_folder, write_v3_h5

from fastvae import Model
from fastvae.data import read
from fastvae.data.opening import open_data
from fastvae.data.request import Source, Wanted
from fastvae.errors import InputError

COUNTS = dense_counts()


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_matrix(path: Path, counts: np.ndarray, kind: str = "integer") -> Path:
    """Write the array as it stands, so cells x genes unless it is turned before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_name(path.name.removesuffix(".gz"))
    scipy.io.mmwrite(plain, sp.coo_matrix(counts), field=kind, symmetry="general")
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def barcodes(n: int = 40) -> list[str]:
    return [f"AAACCCAAG{'ACGT'[i % 4]}{'ACGT'[i // 4 % 4]}{'ACGT'[i // 16]}-1" for i in range(n)]


def with_prefix(folder: Path, prefix: str, counts: np.ndarray = COUNTS, **options) -> Path:
    """Write files as the archives hold them: one folder, the sample in front of each name."""
    inner = write_mtx_folder(folder / "inner", counts, **options)
    for path in inner.iterdir():
        (folder / f"{prefix}{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    shutil.rmtree(inner)
    return folder


def write_kb(folder: Path, counts: np.ndarray = COUNTS, symbols: bool = True) -> Path:
    write_matrix(folder / "cells_x_genes.mtx", counts, "real")
    write(folder / "cells_x_genes.barcodes.txt", *barcodes(len(counts)))
    genes = range(counts.shape[1])
    write(folder / "cells_x_genes.genes.txt", *(f"ENSG{i:011d}.{i % 9}" for i in genes))
    if symbols:
        write(folder / "cells_x_genes.genes.names.txt", *("" if i == 4 else f"G{i}" for i in genes))
    return folder


def write_parse(folder: Path, name: str = "count_matrix.mtx", counts: np.ndarray = COUNTS) -> Path:
    write_matrix(folder / name, counts)
    genes = (f"ENSG{i:011d},G{i},hg38" for i in range(counts.shape[1]))
    write(folder / "all_genes.csv", "gene_id,gene_name,genome", *genes)
    cells = (f"{i:02d}_01_01,s{i % 2},{i * 1.5},true" for i in range(len(counts)))
    write(folder / "cell_metadata.csv", "bc_wells,sample,Depth,kept", *cells)
    return folder


# ------------------------------------------------------------------ prefixes


@pytest.mark.parametrize("prefix", ["GSM123_", "GSM123_sampleA_", "GSM1.s-1.", "pbmc-"])
def test_a_prefix_is_read_from_the_folder(tmp_path: Path, prefix: str) -> None:
    adata = read(with_prefix(tmp_path, prefix))
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert adata.var["gene_ids"].tolist()[:2] == ["ENSG0000", "ENSG0001"]


def test_several_prefixes_are_named_and_one_is_chosen_by_its_file(tmp_path: Path) -> None:
    for i, prefix in enumerate(("GSM1_a_", "GSM2_b_")):
        with_prefix(tmp_path, prefix, COUNTS + i)
    first = tmp_path / "GSM1_a_matrix.mtx.gz"
    with pytest.raises(InputError) as error:
        read(tmp_path)
    assert "2 matrices with the prefixes 'GSM1_a_', 'GSM2_b_'" in str(error.value)
    assert f"pass one by its file, such as {first}" in str(error.value)
    np.testing.assert_array_equal(read(first).X.toarray(), COUNTS)
    for names in ("GSM1_a_barcodes.tsv.gz", "GSM1_a_features.tsv.gz"):
        with pytest.raises(InputError, match=r"pass the folder or the \.mtx file beside it"):
            read(tmp_path / names)
    with pytest.raises(InputError, match=rf"does not exist; did you mean {first}\?"):
        read(tmp_path / "GSM1_a_")
    second = tmp_path / "GSM2_b_matrix.mtx.gz"
    np.testing.assert_array_equal(read(second).X.toarray(), COUNTS + 1)
    assert Model(second, n_latent=2, n_hidden=4) is not None
    store, _ = open_data([first, second], Wanted(), Source("host"))
    assert store.n_cells == 80


def test_one_file_of_genes_for_all_samples(tmp_path: Path) -> None:
    for i, prefix in enumerate(("GSM1_", "GSM2_")):
        with_prefix(tmp_path, prefix, COUNTS + i)
    (tmp_path / "GSM1_features.tsv.gz").rename(tmp_path / "GSE9_features.tsv.gz")
    (tmp_path / "GSM2_features.tsv.gz").unlink()
    np.testing.assert_array_equal(read(tmp_path / "GSM2_matrix.mtx.gz").X.toarray(), COUNTS + 1)


def test_names_of_another_sample_are_not_taken(tmp_path: Path) -> None:
    for prefix in ("GSM1_", "GSM2_"):
        with_prefix(tmp_path, prefix)
    (tmp_path / "GSM2_barcodes.tsv.gz").unlink()
    with pytest.raises(InputError, match=r"no GSM2_barcodes\.tsv \(plain or \.gz\) beside GSM2_"):
        read(tmp_path / "GSM2_matrix.mtx.gz")


# ------------------------------------------------------------------ folders of tools


def test_outs_with_raw_and_filtered_reads_the_filtered_and_says_so(tmp_path: Path) -> None:
    outs = tmp_path / "sample1" / "outs"
    filtered = write_mtx_folder(outs / "filtered_feature_bc_matrix", COUNTS)
    for source in (outs, outs.parent):
        np.testing.assert_array_equal(read(source).X.toarray(), COUNTS)
    raw = write_mtx_folder(outs / "raw_feature_bc_matrix", np.tile(COUNTS, (2, 1)))
    write_v3_h5(outs / "molecule_info.h5", COUNTS, ["Gene Expression"] * 13)
    for source in (outs, outs.parent):
        with pytest.warns(UserWarning, match=f"called cells, {filtered}; pass {raw} for all"):
            adata = read(source)
        np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert read(raw).n_obs == 80


def test_outs_without_a_folder_names_the_file(tmp_path: Path) -> None:
    for kind in ("raw", "filtered"):
        types = ["Gene Expression"] * 13
        write_v3_h5(tmp_path / f"{kind}_feature_bc_matrix.h5", COUNTS, types)
    wanted = r"pass the file, such as .*/filtered_feature_bc_matrix\.h5"
    with pytest.raises(InputError, match=wanted):
        read(tmp_path)


def test_several_samples_are_listed(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        write_mtx_folder(tmp_path / name / "outs" / "filtered_feature_bc_matrix", COUNTS)
    with pytest.raises(InputError, match=r"2 matrices, in 's1/outs/filtered_.*', 's2/outs/.*pass"):
        read(tmp_path)


def test_starsolo(tmp_path: Path) -> None:
    solo = tmp_path / "Solo.out"
    filtered = write_mtx_folder(solo / "Gene" / "filtered", COUNTS)
    raw = write_mtx_folder(solo / "Gene" / "raw", np.tile(COUNTS, (2, 1)))
    write_matrix(raw / "UniqueAndMult-EM.mtx", np.tile(COUNTS, (2, 1)).T + 0.5, "real")
    for source in (tmp_path, solo, solo / "Gene"):
        with pytest.warns(UserWarning, match=rf"{filtered}; pass {raw} for all"):
            np.testing.assert_array_equal(read(source).X.toarray(), COUNTS)
    assert read(raw).n_obs == 80
    for name in ("filtered", "raw"):
        write_mtx_folder(solo / "GeneFull" / name, COUNTS + 1)
        velocyto = write_mtx_folder(solo / "Velocyto" / name, COUNTS)
        for kind in ("unspliced", "ambiguous"):
            shutil.copy(velocyto / "matrix.mtx", velocyto / f"{kind}.mtx")
        (velocyto / "matrix.mtx").rename(velocyto / "spliced.mtx")
    with pytest.raises(InputError) as error:
        read(solo)
    assert "'Gene/filtered', 'GeneFull/filtered', 'Velocyto/filtered'" in str(error.value)
    assert str(error.value).endswith(f"such as {filtered}")
    with pytest.raises(InputError, match=r"'ambiguous\.mtx', 'spliced\.mtx', 'unspliced\.mtx'"):
        read(velocyto)
    np.testing.assert_array_equal(read(velocyto / "spliced.mtx").X.toarray(), COUNTS)


@pytest.mark.parametrize("symbols", [True, False])
def test_kb_python(tmp_path: Path, symbols: bool) -> None:
    folder = write_kb(tmp_path / "out" / "counts_unfiltered", symbols=symbols)
    ids = [f"ENSG{i:011d}.{i % 9}" for i in range(13)]
    names = [f"G{i}" if i != 4 else ids[4] for i in range(13)] if symbols else ids
    for source in (folder, folder.parent, folder / "cells_x_genes.mtx"):
        adata = read(source)
        np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
        assert adata.obs_names.tolist() == barcodes()
        assert adata.var_names.tolist() == names
        assert adata.var["gene_ids"].tolist() == ids


def test_kb_python_with_one_matrix_per_state(tmp_path: Path) -> None:
    write_kb(tmp_path)
    for kind in ("nascent", "mature"):
        shutil.copy(tmp_path / "cells_x_genes.mtx", tmp_path / f"cells_x_genes.{kind}.mtx")
    (tmp_path / "cells_x_genes.mtx").unlink()
    with pytest.raises(InputError, match=r"2 matrices: 'cells_x_genes\.mature\.mtx', 'cells"):
        read(tmp_path)
    adata = read(tmp_path / "cells_x_genes.mature.mtx")
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)


@pytest.mark.parametrize("name", ["DGE.mtx", "count_matrix.mtx", "count_matrix.mtx.gz"])
def test_parse_biosciences(tmp_path: Path, name: str) -> None:
    folder = write_parse(tmp_path / "DGE_filtered", name)
    adata = read(folder)
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert adata.var_names.tolist() == [f"G{i}" for i in range(13)]
    assert adata.var["gene_ids"].tolist() == [f"ENSG{i:011d}" for i in range(13)]
    assert set(adata.var["genome"]) == {"hg38"}
    assert adata.obs_names[3] == "03_01_01"
    assert adata.obs.columns.tolist() == ["sample", "Depth", "kept"]
    assert adata.obs["Depth"].tolist() == [i * 1.5 for i in range(40)]
    assert adata.obs["kept"].dtype == bool
    model = Model(folder, batch_key="sample", n_latent=2, n_hidden=4)
    assert model.fit(1, seed=0, progress=False).get_latent_representation().shape == (40, 2)
    write_parse(tmp_path / "DGE_unfiltered", name)
    with pytest.warns(UserWarning, match=r"called cells, .*DGE_filtered; pass .*DGE_unfiltered"):
        read(tmp_path)


def test_a_plain_folder_above_others_does_not_look_below(tmp_path: Path) -> None:
    folder = write_mtx_folder(tmp_path, COUNTS)
    write_mtx_folder(tmp_path / "analysis" / "other", COUNTS + 1)
    np.testing.assert_array_equal(read(folder).X.toarray(), COUNTS)


def test_links_in_a_circle_and_to_the_same_folder_end(tmp_path: Path) -> None:
    write_mtx_folder(tmp_path / "runs" / "run1", COUNTS)
    (tmp_path / "runs" / "latest").symlink_to(tmp_path / "runs" / "run1")
    (tmp_path / "runs" / "round").symlink_to(tmp_path)
    np.testing.assert_array_equal(read(tmp_path).X.toarray(), COUNTS)


# ------------------------------------------------------------------ orientation


def turned(folder: Path) -> Path:
    write_matrix(folder / "matrix.mtx", COUNTS)
    return folder


def test_the_numbers_of_names_decide_the_orientation(tmp_path: Path) -> None:
    folder = turned(write_mtx_folder(tmp_path / "run", COUNTS))
    with pytest.warns(UserWarning, match=r"cells x genes by the numbers of its names \(40 cells"):
        adata = read(folder)
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    write_matrix(write_kb(tmp_path / "kb") / "cells_x_genes.mtx", COUNTS.T, "real")
    with pytest.warns(UserWarning, match=r"genes x cells by the numbers .*usually cells x genes"):
        adata = read(tmp_path / "kb")
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)


def test_a_square_matrix_is_read_as_the_tool_writes_it(tmp_path: Path) -> None:
    square = COUNTS[:13]
    folder = write_mtx_folder(tmp_path / "run", square)
    np.testing.assert_array_equal(read(folder).X.toarray(), square)
    for written in (write_kb(tmp_path / "kb", square), write_parse(tmp_path / "p", counts=square)):
        np.testing.assert_array_equal(read(written).X.toarray(), square)


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    folder = write_mtx_folder(tmp_path / "run", COUNTS)
    genes, cells = folder / "features.tsv", folder / "barcodes.tsv"
    cells.rename(tmp_path / "kept")
    genes.rename(cells)
    (tmp_path / "kept").rename(genes)
    with (
        pytest.warns(UserWarning, match="cells x genes"),
        pytest.raises(InputError, match=r"barcodes\.tsv holds ids of genes.*swapped\?"),
    ):
        read(folder)


# ------------------------------------------------------------------ tables of names


def rewritten(folder: Path, name: str, change) -> Path:
    lines = (folder / name).read_text().splitlines()
    (folder / name).write_bytes(change(lines))
    return folder


def joined(*lines: str, end: str = "\n") -> bytes:
    return end.join([*lines, ""]).encode()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("barcodes.tsv", lambda rows: joined("barcode", *rows)),
        ("barcodes.tsv", lambda rows: joined("x", *rows)),
        ("barcodes.tsv", lambda rows: joined('"x"', *(f'"{i}"\t"{r}"' for i, r in numbered(rows)))),
        ("barcodes.tsv", lambda rows: joined("\t0", *(f"{i - 1}\t{r}" for i, r in numbered(rows)))),
        ("barcodes.tsv", lambda rows: joined(*rows, end="\r\n")),
        ("barcodes.tsv", lambda rows: joined(*rows, end="\r")),
        ("barcodes.tsv", lambda rows: joined(*rows)[:-1]),
        ("barcodes.tsv", lambda rows: b"\xef\xbb\xbf" + joined("", *rows[:9], "", *rows[9:], "")),
        ("barcodes.tsv", lambda rows: joined(*(f"{row} " for row in rows))),
        ("barcodes.tsv", lambda rows: gzip.compress(joined(*rows))),
        ("features.tsv", lambda rows: joined("gene_id\tgene_name\tfeature_type", *rows)),
        ("features.tsv", lambda rows: joined("V1\tV2\tV3", *rows)),
        ("features.tsv", lambda rows: joined(*rows, end="\r\n")),
        ("features.tsv", lambda rows: joined(*rows[:3], "", " ", *rows[3:])),
        ("features.tsv", lambda rows: joined(*(row + "\tchr1\t5\t9" for row in rows))),
        ("features.tsv", lambda rows: joined(rows[0], *(row + "\tchr1" for row in rows[1:]))),
        ("matrix.mtx", lambda rows: joined(*rows, end="\r\n")),
        ("matrix.mtx", lambda rows: joined(*rows[:9], "", *rows[9:], "", "  ")),
        ("matrix.mtx", lambda rows: joined(*rows[:3], *(f" {r}\t" for r in rows[3:]))),
        ("matrix.mtx", lambda rows: joined(*rows)[:-1]),
        ("matrix.mtx", lambda rows: joined(*rows).replace(b"%%MatrixMarket", b"%%matrixMARKET")),
        ("matrix.mtx", lambda rows: joined(*rows).replace(b"integer", b"real")),
        ("matrix.mtx", lambda rows: joined(rows[0], "%a", "", "% b 1 2 3", *rows[2:])),
        ("matrix.mtx", lambda rows: joined(*rows[:3], *reversed(rows[3:]))),
        (
            "matrix.mtx",
            lambda rows: gzip.compress(joined(*rows[:5])) + gzip.compress(joined(*rows[5:])),
        ),
    ],
)
def test_forms_of_the_same_content_read_alike(tmp_path: Path, name: str, change) -> None:
    folder = write_mtx_folder(tmp_path / "run", COUNTS)
    wanted = read(folder)
    adata = read(rewritten(folder, name, change))
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)
    assert adata.obs_names.tolist() == wanted.obs_names.tolist()
    assert adata.var_names.tolist() == wanted.var_names.tolist()
    assert adata.var["gene_ids"].tolist() == wanted.var["gene_ids"].tolist()
    assert adata.var["feature_types"].tolist() == wanted.var["feature_types"].tolist()


def numbered(rows: list[str]) -> list[tuple[int, str]]:
    return list(enumerate(rows, 1))


def test_a_name_decides_nothing_about_compression(tmp_path: Path) -> None:
    folder = write_mtx_folder(tmp_path / "run", COUNTS)
    (folder / "barcodes.tsv").rename(folder / "barcodes.tsv.gz")  # unpacked by a browser
    np.testing.assert_array_equal(read(folder).X.toarray(), COUNTS)


def test_a_blank_symbol_is_replaced_by_the_id_and_a_blank_id_by_the_symbol(tmp_path: Path) -> None:
    symbols = ["", " ", *(f"G{i}" for i in range(2, 13))]
    folder = write_mtx_folder(tmp_path / "run", COUNTS, symbols=symbols)
    adata = read(folder)
    assert adata.var_names.tolist() == ["ENSG0000", "ENSG0001", *symbols[2:]]
    rewritten(folder, "features.tsv", lambda rows: joined(rows[0], rows[1], rows[2][8:], *rows[3:]))
    assert read(folder).var["gene_ids"].tolist()[:4] == ["ENSG0000", "ENSG0001", "G2", "ENSG0003"]
    rewritten(folder, "features.tsv", lambda rows: joined("\t\tGene Expression", *rows[1:]))
    with pytest.raises(InputError, match=r"features\.tsv: gene 1 of 13 has neither id nor symbol"):
        read(folder)


def test_a_header_keeps_the_columns_of_the_cells(tmp_path: Path) -> None:
    folder = write_mtx_folder(tmp_path / "run", COUNTS)
    cells = [f"{row}\td{i % 2}\t{i}" for i, row in enumerate(read(folder).obs_names)]
    rewritten(folder, "barcodes.tsv", lambda rows: joined("barcode\tdonor\tn", *cells))
    adata = read(folder)
    assert adata.obs["donor"].tolist() == [f"d{i % 2}" for i in range(40)]
    assert adata.obs["n"].tolist() == list(range(40))


def test_a_header_does_not_hide_a_missing_line(tmp_path: Path) -> None:
    folder = write_mtx_folder(tmp_path / "run", COUNTS)
    rewritten(folder, "barcodes.tsv", lambda rows: joined("barcode", *rows[:-1]))
    with pytest.raises(InputError, match="has 40 cells, but there are 39 barcodes"):
        read(folder)


def test_a_third_column_of_genes_tsv_is_no_feature_type(tmp_path: Path) -> None:
    folder = write_mtx_folder(tmp_path / "run", COUNTS, version=2)
    rewritten(folder, "genes.tsv", lambda rows: joined(*(f"{row}\tprotein_coding" for row in rows)))
    adata = read(folder)
    assert adata.n_vars == 13
    assert "feature_types" not in adata.var


def test_repeated_barcodes_are_named_and_kept(tmp_path: Path) -> None:
    folder = write_mtx_folder(tmp_path / "run", COUNTS)
    rewritten(folder, "barcodes.tsv", lambda rows: joined(*rows[:-1], rows[0]))
    with pytest.warns(UserWarning, match=r"1 barcodes more than once: 'AAAC0-1'"):
        adata = read(folder)
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS)


# ------------------------------------------------------------------ unfiltered


@pytest.mark.parametrize("kind", ["folder", "h5"])
def test_empty_droplets_are_said_and_the_filtered_counts_named(tmp_path: Path, kind: str) -> None:
    full = np.zeros((20_040, 13), dtype=np.float32)
    full[::501] = COUNTS + 1  # every gene: 13 of them
    types = ["Gene Expression"] * 13
    if kind == "folder":
        raw = write_mtx_folder(tmp_path / "raw_feature_bc_matrix", full)
        filtered = tmp_path / "filtered_feature_bc_matrix"
        filtered.mkdir()
    else:
        raw = write_v3_h5(tmp_path / "raw_feature_bc_matrix.h5", full, types)
        filtered = write_v3_h5(tmp_path / "filtered_feature_bc_matrix.h5", COUNTS, types)
    with pytest.warns(UserWarning, match=rf"20000 of its 20040 barcodes .*; use {filtered} before"):
        assert read(raw).n_obs == 20_040
    filtered.rmdir() if kind == "folder" else filtered.unlink()
    with pytest.warns(UserWarning, match=r"use the filtered counts, or call the cells before"):
        read(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read(write_mtx_folder(tmp_path / "cells", np.repeat(full[::501], 3, axis=0)))
