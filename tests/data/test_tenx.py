"""Cell Ranger files: what comes out equals what a slow, separate parser finds in them."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from count_data import TENX, dense_counts, write_mtx_folder, write_v3_h5

from fastvae.data import read
from fastvae.errors import InputError

V2 = TENX / "1.2.0"
V3 = TENX / "3.0.0"


def _lines(path: Path) -> list[str]:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return text.decode().splitlines()


def _slow_mtx(path: Path) -> np.ndarray:
    body = [line for line in _lines(path) if not line.startswith("%")]
    n_genes, n_cells, _ = map(int, body[0].split())
    counts = np.zeros((n_cells, n_genes), dtype=np.float32)
    for line in body[1:]:
        gene, cell, value = line.split()
        counts[int(cell) - 1, int(gene) - 1] = float(value)
    return counts


@pytest.mark.parametrize(
    ("folder", "matrix", "barcodes", "genes"),
    [
        (V2 / "filtered_gene_bc_matrices/hg19_chr21", "matrix.mtx", "barcodes.tsv", "genes.tsv"),
        (
            V3 / "filtered_feature_bc_matrix",
            "matrix.mtx.gz",
            "barcodes.tsv.gz",
            "features.tsv.gz",
        ),
        (TENX / "int-ids", "matrix.mtx", "barcodes.tsv", "features.tsv"),
    ],
    ids=["v2", "v3", "integer ids"],
)
def test_folder_matches_a_slow_parser(folder: Path, matrix: str, barcodes: str, genes: str) -> None:
    adata = read(folder)
    np.testing.assert_array_equal(adata.X.toarray(), _slow_mtx(folder / matrix))
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    fields = [line.split("\t") for line in _lines(folder / genes)]
    assert adata.obs_names.tolist() == _lines(folder / barcodes)
    assert adata.var["gene_ids"].tolist() == [row[0] for row in fields]
    assert [n.split("-")[0] for n in adata.var_names] == [row[1].split("-")[0] for row in fields]


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        (V2 / "filtered_gene_bc_matrices_h5.h5", V2 / "filtered_gene_bc_matrices/hg19_chr21"),
        (V3 / "filtered_feature_bc_matrix.h5", V3 / "filtered_feature_bc_matrix"),
    ],
    ids=["v2", "v3"],
)
def test_hdf5_and_folder_of_one_run_read_alike(file: Path, folder: Path) -> None:
    ours, theirs = read(file), read(folder)
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())
    assert ours.obs_names.tolist() == theirs.obs_names.tolist()
    assert ours.var_names.tolist() == theirs.var_names.tolist()
    assert ours.var["gene_ids"].tolist() == theirs.var["gene_ids"].tolist()


def test_two_genomes_need_a_choice() -> None:
    path = V2 / "multiple_genomes.h5"
    with pytest.raises(InputError, match=r"another_genome.*hg19_chr21.*genome="):
        read(path)
    with pytest.raises(InputError, match=r"no genome 'hg19'.*did you mean 'hg19_chr21'"):
        read(path, genome="hg19")
    for genome in ("hg19_chr21", "another_genome"):
        with h5py.File(path) as file:
            group = file[genome]
            parts = (group["data"][:], group["indices"][:], group["indptr"][:])
            expected = sp.csc_matrix(parts, shape=tuple(group["shape"][:])).T.toarray()
            ids = [gene.decode() for gene in group["genes"][:]]
        adata = read(path, genome=genome)
        np.testing.assert_array_equal(adata.X.toarray(), expected)
        assert adata.var["gene_ids"].tolist() == ids


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    "zipped",
    [(), ("matrix.mtx",), ("barcodes.tsv", "genes.tsv", "features.tsv"), ("barcodes.tsv",)],
    ids=["plain", "matrix", "names", "barcodes"],
)
def test_any_mix_of_plain_and_compressed(
    tmp_path: Path, version: int, zipped: tuple[str, ...]
) -> None:
    counts = dense_counts()
    folder = write_mtx_folder(tmp_path / "run", counts, version=version, zipped=zipped)
    adata = read(folder)
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert ("feature_types" in adata.var) == (version == 3)


def test_the_matrix_file_or_the_folder_above_name_the_folder(tmp_path: Path) -> None:
    counts = dense_counts()
    folder = write_mtx_folder(tmp_path / "out" / "hg19", counts, version=2)
    for source in (folder / "matrix.mtx", folder.parent, str(folder)):
        np.testing.assert_array_equal(read(source).X.toarray(), counts)
    write_mtx_folder(tmp_path / "out" / "mm10", counts + 1, version=2)
    with pytest.raises(InputError, match=r"2 genomes.*'hg19', 'mm10'.*genome="):
        read(folder.parent)
    np.testing.assert_array_equal(read(folder.parent, genome="mm10").X.toarray(), counts + 1)


def test_only_gene_expression_is_kept_and_the_rest_is_named(tmp_path: Path) -> None:
    counts = dense_counts(n_genes=6)
    types = ["Gene Expression", "Antibody Capture"] * 2 + ["CRISPR Guide Capture"] * 2
    folder = write_mtx_folder(tmp_path / "run", counts, types=types)
    file = write_v3_h5(tmp_path / "run.h5", counts, types)
    for source in (folder, file):
        with pytest.warns(UserWarning, match=r"2 of 'Antibody Capture', 2 of 'CRISPR Guide"):
            adata = read(source)
        np.testing.assert_array_equal(adata.X.toarray(), counts[:, [0, 2]])
        assert adata.var_names.tolist() == ["G0", "G2"]
    none = write_v3_h5(tmp_path / "none.h5", counts, ["Antibody Capture"] * 6)
    with pytest.raises(InputError, match=r"no feature of type 'Gene Expression'.*Antibody"):
        read(none)


def test_genome_selects_genes_of_a_v3_file(tmp_path: Path) -> None:
    counts = dense_counts(n_genes=5)
    genomes = ["GRCh38", "GRCh38", "mm10", "GRCh38", "mm10"]
    path = write_v3_h5(tmp_path / "mix.h5", counts, ["Gene Expression"] * 5, genomes)
    np.testing.assert_array_equal(read(path).X.toarray(), counts)
    np.testing.assert_array_equal(read(path, genome="mm10").X.toarray(), counts[:, [2, 4]])
    with pytest.raises(InputError, match=r"no genome 'hg19'.*GRCh38.*mm10"):
        read(path, genome="hg19")


def test_repeated_symbols_get_suffixes_and_keep_their_ids(tmp_path: Path) -> None:
    symbols = ["A", "B", "A", "A-1", "A"]
    folder = write_mtx_folder(tmp_path / "run", dense_counts(n_genes=5), symbols=symbols)
    adata = read(folder)
    assert adata.var_names.tolist() == ["A", "B", "A-2", "A-1", "A-3"]
    assert adata.var["gene_ids"].tolist() == [f"ENSG{i:04d}" for i in range(5)]


def test_unfitting_names_name_the_files(tmp_path: Path) -> None:
    folder = write_mtx_folder(tmp_path / "run", dense_counts())
    barcodes = (folder / "barcodes.tsv").read_text()
    (folder / "barcodes.tsv").write_text(barcodes + "EXTRA-1\n")
    with pytest.raises(InputError, match=r"matrix\.mtx has 40 cells, but there are 41 barcodes"):
        read(folder)
    (folder / "barcodes.tsv").write_text(barcodes)
    genes = (folder / "features.tsv").read_text().splitlines(keepends=True)
    (folder / "features.tsv").write_text("".join(genes[:-1]))
    with pytest.raises(InputError, match=r"matrix\.mtx has 13 genes, but there are 12 gene lines"):
        read(folder)
    (folder / "features.tsv").unlink()
    with pytest.raises(InputError, match=r"no features\.tsv or genes\.tsv"):
        read(folder)


def test_folder_without_matrix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no matrix\.mtx"):
        read(tmp_path)
    (tmp_path / "GSM1_matrix.mtx.gz").touch()
    with pytest.raises(InputError, match=r"no GSM1_barcodes\.tsv .*beside GSM1_matrix\.mtx\.gz"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("matrix.mtx", lambda data: data[: len(data) // 2]),
        ("matrix.mtx", lambda data: data.replace(b"\n2 ", b"\nx ", 1)),
        ("matrix.mtx", lambda data: b"gene,cell,count\n" + data),
        ("matrix.mtx", lambda data: b""),
        ("matrix.mtx.gz", lambda data: data[: len(data) // 2]),
        ("matrix.mtx.gz", lambda data: b"plain text"),
        ("barcodes.tsv.gz", lambda data: data[:-12]),
    ],
    ids=["cut", "letter", "csv", "empty", "gz cut", "not gz", "barcodes cut"],
)
def test_damaged_folder_names_the_file(tmp_path: Path, name: str, damage) -> None:
    zipped = (name.removesuffix(".gz"),) if name.endswith(".gz") else ()
    folder = write_mtx_folder(tmp_path / "run", dense_counts(), zipped=zipped)
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=rf"{name}.*(damaged|empty|not a matrix-market)"):
        read(folder)


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    folder = write_mtx_folder(tmp_path / "run", dense_counts())
    with pytest.raises(InputError, match=r"10x folder has one matrix only; leave out layer='raw'"):
        read(folder, layer="raw")
    with pytest.raises(InputError, match=r"10x file has one matrix only; leave out use_raw=True"):
        read(V3 / "filtered_feature_bc_matrix.h5", use_raw=True)
