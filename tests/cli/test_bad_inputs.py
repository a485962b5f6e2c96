"""Every kind of bad input, with the one message that it gets.

``python tests/cli/test_bad_inputs.py --write`` writes the table of them, BAD_INPUTS.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import anndata
import answer_faults
import folder_faults
import numpy as np
import pytest
import reference_faults
import scipy.sparse as sp
import stream_faults
import structure_faults
import torch
from count_data import TENX, annotated, dense_counts
from places import LEGACY

from fastvae import Model, _memory
from fastvae.cli.de import check_outputs
from fastvae.errors import InputError
from fastvae.plots.figures import check_picture
from fastvae.plots.projection import project
from fastvae.report.pictures import PictureOptions, colours_of
from fastvae.report.report import check_report, write_report

TABLE = Path(__file__).with_name("BAD_INPUTS.md")
SMALL = {"n_latent": 2, "n_hidden": 4}
COLOURED = PictureOptions(color=("celltype",))


# Around what h5py, json, safetensors or torch say in their own words, which versions change.
FOREIGN = [
    (r"truncated \(", r"\); copy"),
    (r"damaged or incomplete \(", r"\); copy"),
    (r"not a table of names \(", r"\); copy"),
    (r"is not JSON \(", r"\); restore"),
    (r"config\.json is damaged \(", r"\); restore"),
    (r"not a safetensors file: ", r"$"),
    (r"does not fit config\.json: ", r" Restore"),
    (r"cannot be evaluated on obs \(", r"\); there"),
]


@dataclass(frozen=True)
class Case:
    """What is done, and what makes it: given an empty folder, `run` must raise."""

    what: str
    run: Callable[[Path], Any]


def counts_with(value: float) -> sp.csr_matrix:
    counts = dense_counts()
    counts[7, 5] = value
    return sp.csr_matrix(counts)


def log_normalised() -> anndata.AnnData:
    counts = dense_counts()
    adata = annotated(np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).astype(np.float32))
    adata.layers["counts"] = sp.csr_matrix(counts)
    return adata


def h5ad(folder: Path, adata: anndata.AnnData | None = None) -> Path:
    (adata if adata is not None else annotated()).write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def truncated(folder: Path) -> Path:
    path = h5ad(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def text_file(folder: Path, name: str) -> Path:
    (folder / name).write_text("cell,gene,count\n")
    return folder / name


def duplicate_genes() -> anndata.AnnData:
    adata = annotated()
    adata.var_names = ["G1" if name == "G2" else name for name in adata.var_names]
    return adata


def two_genomes(folder: Path) -> Path:
    return Path(shutil.copy(TENX / "1.2.0" / "multiple_genomes.h5", folder))


def missing_batch(folder: Path) -> anndata.AnnData:
    adata = annotated()
    adata.obs["batch"] = adata.obs["batch"].astype(object)
    adata.obs.loc[adata.obs_names[3], "batch"] = None
    return adata


COLUMNS: dict[str, dict[str, Any]] = {
    "site": {"categorical_covariate_keys": ["site"]},
    "age": {"continuous_covariate_keys": ["age"]},
    "size": {"size_factor_key": "size"},
}


def with_column(name: str, wrong: Any) -> Model:
    """A column of ones, or of sites, in which the fourth cell is wrong."""
    adata = annotated()
    values = np.full(adata.n_obs, "x" if name == "site" else 1.0, dtype=object)
    values[3] = None if wrong == "missing" else wrong
    column = values if name == "site" or wrong == "words" else values.astype(float)
    adata.obs[name] = column
    return model(adata, **COLUMNS[name])


def unknown_site() -> Any:
    adata = annotated()
    adata.obs["site"] = ["x", "y"] * 20
    made = model(adata, **COLUMNS["site"]).fit(1, seed=0, progress=False, device="cpu")
    adata.obs["site"] = ["x", "z"] * 20
    return made.get_normalized_expression(adata)


def named_twice() -> Model:
    return model(categorical_covariate_keys=["age"], continuous_covariate_keys=["age"])


def learned_and_sized() -> Model:
    return model(size_factor_key="size", use_observed_lib_size=False)


def model(data: Any = None, **options: Any) -> Model:
    return Model(annotated() if data is None else data, **{**SMALL, **options})


def fit(**options: Any) -> Model:
    return model().fit(**{"max_epochs": 1, "seed": 0, "progress": False, **options})


def trained() -> Model:
    made = model(batch_key="batch")
    return made.fit(1, seed=0, progress=False, device="cpu")


def saved(folder: Path) -> Path:
    trained().save(folder / "run")
    return folder / "run"


def changed(folder: Path, name: str, change: Callable[[bytes], bytes]) -> Model:
    path = saved(folder) / name
    path.write_bytes(change(path.read_bytes()))
    return Model.load(folder / "run")


def without(folder: Path, name: str) -> Model:
    (saved(folder) / name).unlink()
    return Model.load(folder / "run")


def edited_config(folder: Path, **entries: Any) -> Model:
    def edit(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), **entries}).encode()

    return changed(folder, "config.json", edit)


def flip_last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def no_number(content: bytes) -> bytes:
    return content.replace(b"0.001", b"0.00l")


def no_safetensors(folder: Path) -> Model:
    (saved(folder) / "model.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    config = json.loads((folder / "run" / "config.json").read_text())
    (folder / "run" / "config.json").write_text(json.dumps({**config, "weights_sha256": digest}))
    return Model.load(folder / "run")


def other_genes() -> anndata.AnnData:
    adata = annotated()
    adata.var_names = [f"ENS{i}" if i < 4 else name for i, name in enumerate(adata.var_names)]
    del adata.var["gene_ids"]
    return adata


def two_layers() -> anndata.AnnData:
    adata = log_normalised()
    adata.layers["umis"] = adata.layers.pop("counts")
    return adata


def trained_on_a_layer() -> Model:
    made = model(log_normalised(), layer="counts")
    return made.fit(1, seed=0, progress=False, device="cpu")


def other_batch() -> anndata.AnnData:
    adata = annotated()
    adata.obs["batch"] = ["b0", "b9"] * 20
    return adata


def no_batch_column() -> anndata.AnnData:
    adata = annotated()
    del adata.obs["batch"]
    return adata


def save_below_a_file(folder: Path) -> None:
    (folder / "file").write_text("")
    trained().save(folder / "file" / "run")


def save_over(folder: Path) -> None:
    trained().save(saved(folder))


def save_to_a_file(folder: Path) -> None:
    (folder / "file").write_text("")
    trained().save(folder / "file")


def resumed(folder: Path, **options: Any) -> None:
    fit(checkpoint_dir=folder)
    fit(checkpoint_dir=folder, resume=True, **options)


def damaged_checkpoints(folder: Path) -> None:
    fit(checkpoint_dir=folder)
    (folder / "000001.safetensors").write_bytes(b"")
    fit(checkpoint_dir=folder, resume=True)


@contextmanager
def memory(available: int) -> Iterator[None]:
    with mock.patch.object(_memory, "available_memory", return_value=available):
        yield


def read_without_memory(folder: Path) -> None:
    path = h5ad(folder)
    with memory(1000):
        model(path)


def expression_without_memory(folder: Path) -> None:
    made = trained()
    with memory(1000):
        made.get_normalized_expression(n_samples=100, return_mean=False)


def cut_after_training() -> None:
    adata = annotated()
    made = model(adata)
    made.is_trained = True
    adata._inplace_subset_obs(np.arange(3, adata.n_obs))
    made.differential_expression(groupby="batch")


def compared(groupby: Any, **options: Any) -> Any:
    adata = annotated()
    adata = anndata.concat([adata] * 13, index_unique="-")
    adata.obs["cell_type"] = ["rare", *"AB" * (adata.n_obs // 2 - 1), "A"]
    adata.obs["one"] = "A"
    adata.obs["depth"] = np.arange(adata.n_obs) / 7
    return trained().differential_expression(adata, groupby, **options)


def de_of_kind(folder: Path, name: str) -> None:
    check_outputs(folder / name, overwrite=False)


def de_over_a_table(folder: Path) -> None:
    (folder / "markers.png").write_bytes(b"")
    de_of_kind(folder, "markers.csv")


def on_cuda(**_: Any) -> None:
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        fit(device="cuda")


CASES = [
    # reading
    Case("a file that is not there", lambda d: model(d / "atlas.h5ad")),
    Case("a text file", lambda d: model(text_file(d, "counts.csv"))),
    Case("a text file named .h5ad", lambda d: model(text_file(d, "cells.h5ad"))),
    Case("a truncated .h5ad", lambda d: model(truncated(d))),
    Case("a folder without a matrix", lambda d: model(d)),
    Case("a 10x file with two genomes", lambda d: model(two_genomes(d))),
    Case("a layer and raw at once", lambda d: model(layer="counts", use_raw=True)),
    Case("a layer that is not there", lambda d: model(layer="spliced")),
    Case("a batch key that is no name", lambda d: model(batch_key=["batch", 3])),
    Case("a column twice in a batch key", lambda d: model(batch_key=["batch", "batch"])),
    Case("log-normalised values in X", lambda d: model(log_normalised())),
    Case("a negative value", lambda d: model(annotated(counts_with(-1)))),
    Case("a NaN", lambda d: model(annotated(counts_with(np.nan)))),
    Case("an infinite value", lambda d: model(annotated(counts_with(np.inf)))),
    Case("nothing but zeros", lambda d: model(annotated(sp.csr_matrix((40, 13), dtype="f4")))),
    Case("one cell", lambda d: model(annotated()[:1].copy())),
    Case("one gene", lambda d: model(annotated()[:, :1].copy())),
    Case("duplicate genes", lambda d: model(duplicate_genes())),
    Case("a file larger than the memory", read_without_memory),
    Case("something that is no data", lambda d: model(42)),
    # columns of obs
    Case("a batch column that is not there", lambda d: model(batch_key="donor")),
    Case("a label column that is not there", lambda d: model(labels_key="cell_typ")),
    Case(
        "a batch column with missing values", lambda d: model(missing_batch(d), batch_key="batch")
    ),
    Case("a batch key for an array", lambda d: model(dense_counts(), batch_key="batch")),
    Case("a covariate that is not there", lambda d: model(categorical_covariate_keys=["site"])),
    Case("a covariate with a missing category", lambda d: with_column("site", "missing")),
    Case("a category that the model does not know", lambda d: unknown_site()),
    Case("a continuous covariate of words", lambda d: with_column("age", "words")),
    Case("a continuous covariate with a NaN", lambda d: with_column("age", np.nan)),
    Case("a continuous covariate that is infinite", lambda d: with_column("age", np.inf)),
    Case("a size factor of 0", lambda d: with_column("size", 0.0)),
    Case("a covariate named twice", lambda d: named_twice()),
    Case("a learned library size beside size factors", lambda d: learned_and_sized()),
    # options of the model
    Case("n_latent=0", lambda d: model(n_latent=0)),
    Case("n_hidden=2.5", lambda d: model(n_hidden=2.5)),
    Case("dropout_rate=1", lambda d: model(dropout_rate=1)),
    Case("an unknown dispersion", lambda d: model(dispersion="cell")),
    Case("an unknown reconstruction loss", lambda d: model(reconstruction_loss="mse")),
    Case("an unknown latent distribution", lambda d: model(latent_distribution="gamma")),
    Case("gene-batch without a batch key", lambda d: model(dispersion="gene-batch")),
    Case("gene-label without a labels key", lambda d: model(dispersion="gene-label")),
    # options of fit
    Case("max_epochs=-1", lambda d: fit(max_epochs=-1)),
    Case("batch_size=0", lambda d: fit(batch_size=0)),
    Case("batch_size=1", lambda d: fit(batch_size=1)),
    Case("train_size=1.5", lambda d: fit(train_size=1.5)),
    Case("too few cells to train on", lambda d: fit(train_size=0.01)),
    Case("early stopping without validation", lambda d: fit(train_size=1, early_stopping=True)),
    Case("learning_rate=0", lambda d: fit(learning_rate=0)),
    Case("a learning rate that diverges", lambda d: fit(learning_rate=1e15, max_epochs=9)),
    Case("seed=-1", lambda d: fit(seed=-1)),
    Case("an unknown device", lambda d: fit(device="gpu")),
    Case("a device that is not there", lambda d: on_cuda()),
    Case("an unknown precision", lambda d: fit(precision="fp8")),
    Case("lr_factor=1", lambda d: fit(lr_factor=1)),
    Case("resuming without a folder", lambda d: fit(resume=True)),
    Case("checkpoints of another run", lambda d: [fit(checkpoint_dir=d) for _ in range(2)]),
    Case("resuming with another batch size", lambda d: resumed(d, batch_size=16)),
    Case("nothing but damaged checkpoints", damaged_checkpoints),
    Case("checkpoint_minutes=0", lambda d: fit(checkpoint_dir=d, checkpoint_minutes=0)),
    # questions
    Case("a question before training", lambda d: model().get_latent_representation()),
    Case("new data without some genes", lambda d: trained().get_elbo(other_genes())),
    Case("new data with the counts elsewhere", lambda d: trained().get_elbo(log_normalised())),
    Case(
        "new data without the model's layer", lambda d: trained_on_a_layer().get_elbo(two_layers())
    ),
    Case("a layer of the model's own data", lambda d: trained().get_elbo(layer="counts")),
    Case("new data with an unknown batch", lambda d: trained().get_elbo(other_batch())),
    Case("new data without the batch column", lambda d: trained().get_elbo(no_batch_column())),
    Case("cells out of range", lambda d: trained().get_elbo(cells=[40])),
    Case("names of other cells", lambda d: trained().get_elbo(cells=["AAAC-1"])),
    Case("annotations of data that were cut", lambda d: cut_after_training()),
    Case("unknown genes", lambda d: trained().get_normalized_expression(genes=["CD3D"])),
    Case(
        "an unknown batch to decode as",
        lambda d: trained().get_normalized_expression(transform_batch="b7"),
    ),
    Case("expression larger than the memory", expression_without_memory),
    # differential expression
    Case("groups of a column that is not there", lambda d: compared("celltype")),
    Case("groups of other cells", lambda d: compared(np.array(["a", "b"]))),
    Case("a group that is not there", lambda d: compared("cell_type", group1="T")),
    Case("a column with one group", lambda d: compared("one")),
    Case("a column of numbers, not groups", lambda d: compared("depth")),
    Case("a group with too few cells", lambda d: compared("cell_type", group2="rare")),
    Case("a group against itself", lambda d: compared("cell_type", group1="A", group2="A")),
    Case("nothing to compare", lambda d: compared(None)),
    Case("cells in both groups", lambda d: compared(None, idx1=[0, 1, 2], idx2=[2, 3])),
    Case("a condition on no column", lambda d: compared(None, idx1="celltype == 'A'")),
    Case("a false discovery rate of 5", lambda d: compared("cell_type", fdr_target=5)),
    Case("batches to decode as, uncorrected", lambda d: compared("cell_type", batchid1="b0")),
    Case("parts that are not there", lambda d: compared("cell_type", within="celltype")),
    Case("parts of cells given by row", lambda d: compared(None, idx1=[0, 1], within="cell_type")),
    Case("a table over one that is there", de_over_a_table),
    Case("a table of an unknown kind", lambda d: de_of_kind(d, "markers.tsv")),
    # pictures and reports
    Case("a colour that is nowhere", lambda d: colours_of(annotated().obs, model(), COLOURED)),
    Case("UMAP of a few cells", lambda d: project(np.zeros((5, 3)), method="umap")),
    Case("a picture of an unknown kind", lambda d: check_picture(d / "latent.bmp")),
    Case("a report that is no page", lambda d: check_report(d / "run.pdf", overwrite=False)),
    Case("a report on nothing trained", lambda d: write_report(model(), d / "run.html")),
    # saving and loading
    Case("saving over something", save_over),
    Case("saving to a file's name", save_to_a_file),
    Case("saving where nothing can be written", save_below_a_file),
    Case("loading a folder that is not there", lambda d: Model.load(d / "run")),
    Case("loading a folder without a model", lambda d: Model.load(d)),
    Case("config.json missing", lambda d: without(d, "config.json")),
    Case("config.json not JSON", lambda d: changed(d, "config.json", lambda c: c[:40])),
    Case("config.json of something else", lambda d: edited_config(d, format="hub-model")),
    Case(
        "config.json of a newer version",
        lambda d: edited_config(d, format_version=99, fastvae_version="9.0"),
    ),
    Case("config.json without the options", lambda d: edited_config(d, options={"depth": 3})),
    Case("weights missing", lambda d: without(d, "model.safetensors")),
    Case(
        "one bit of the weights changed", lambda d: changed(d, "model.safetensors", flip_last_byte)
    ),
    Case(
        "weights that Git LFS keeps elsewhere",
        lambda d: changed(
            d, "model.safetensors", lambda _: b"version https://git-lfs.github.com/spec/v1\n"
        ),
    ),
    Case("weights cut short", lambda d: changed(d, "model.safetensors", lambda c: c[:300])),
    Case("weights that are no safetensors", no_safetensors),
    Case("weights of another network", lambda d: edited_config(d, options={"n_latent": 9})),
    Case("a damaged history", lambda d: changed(d, "history.csv", no_number)),
    Case("a model loaded without data", lambda d: Model.load(saved(d)).get_elbo()),
]
CASES += [Case(what, run) for what, run in stream_faults.CASES]
CASES += [Case(what, run) for what, run in reference_faults.CASES]
CASES += [Case(what, run) for what, run in answer_faults.CASES]
CASES += [Case(what, run) for what, run in folder_faults.CASES]
CASES += [Case(what, run) for what, run in structure_faults.CASES]


def message_of(case: Case, folder: Path) -> str:
    """Return the message, with the folder's name replaced."""
    try:
        case.run(folder)
    except InputError as error:
        text = str(error).replace(str(folder), "DIR").replace(str(LEGACY), "DIR")
    else:
        raise AssertionError(f"{case.what}: accepted")
    text = re.sub(r"needs about [\d.]+ [MG]B", "needs about N MB", text)
    for before, after in FOREIGN:
        text = re.sub(f"({before}).*({after})", r"\1REASON\2", text)
    return text.replace(os.sep, "/").replace("\n", " ")


def table(messages: list[str]) -> str:
    rows = ["| input | message |", "|---|---|"]
    for case, text in zip(CASES, messages, strict=True):
        rows.append(f"| {case.what} | {text.replace('|', chr(92) + '|')} |")
    return (
        "# Bad inputs\n\n"
        "Each raises `fastvae.InputError`, a `ValueError`; the command line prints it after\n"
        "`error:` and ends with status 2. `DIR` is the working folder, `REASON` what the library\n"
        "below said. Written by\n"
        "`python tests/cli/test_bad_inputs.py --write`, which the tests compare with this file.\n\n"
        + "\n".join(rows)
        + "\n\nNot refused: cells without any count. They are kept, and latent position,\n"
        "expression and likelihood are finite for them. A few values that are not whole numbers\n"
        "give a warning and are used as they are.\n"
    )


def committed() -> dict[str, str]:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", TABLE.read_text(encoding="utf-8"), re.M)
    return {what: text.replace("\\|", "|") for what, text in rows[1:]}  # the first is the heading


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what.replace(" ", "_"))
def test_message(case: Case, tmp_path: Path) -> None:
    text = message_of(case, tmp_path)
    assert text == committed()[case.what]
    assert len(text) > 30, "a message says what was expected or what to do"
    leftovers = [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert not leftovers


def test_table_has_these_cases_and_no_others() -> None:
    names = [case.what for case in CASES]
    assert len(set(names)) == len(names) >= 25
    assert list(committed()) == names


def test_cells_without_counts_are_not_refused() -> None:
    counts = dense_counts()
    counts[[0, 9]] = 0
    made = model(annotated(sp.csr_matrix(counts))).fit(2, seed=0, progress=False)
    assert np.isfinite(made.get_latent_representation()[[0, 9]]).all()
    assert np.isfinite(made.get_elbo(return_mean=False)).all()


def write() -> None:
    """Write the table anew."""
    torch.manual_seed(0)
    warnings.simplefilter("error")
    messages = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            messages.append(message_of(case, Path(folder)))
    TABLE.write_text(table(messages), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/cli/test_bad_inputs.py --write")
    write()
