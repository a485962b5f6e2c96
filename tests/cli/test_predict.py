"""``fastvae train --unlabeled-category`` and ``fastvae predict``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from command_line import run
from small_models import small_data

from fastvae import Model

SMALL = ["--max-epochs", 1, "--n-latent", 3, "--n-hidden", 8, "--batch-key", "batch", "-q"]
LABELS = ["--labels-key", "known", "--unlabeled-category", "none yet"]


def test_labels_as_the_model_gives_them(tmp_path: Path) -> None:
    adata = small_data()
    types = adata.obs["cell_type"].astype(str)
    adata.obs["known"] = types.where(np.arange(adata.n_obs) % 2 == 0, "none yet")
    cells, folder, out = (tmp_path / name for name in ("cells.h5ad", "run", "labels.csv"))
    adata.write_h5ad(cells)
    options = [*LABELS, "--linear-classifier", "--classification-ratio", 20]
    said = run("train", cells, "-o", folder, *SMALL, *options).stdout
    assert f"fastvae predict {folder} {cells} -o labels.csv" in said
    model = Model.load(folder)
    assert model.training["settings"]["classification_ratio"] == 20.0
    probabilities = model.predict(cells, soft=True)
    assert "120 cells" in run("predict", folder, cells, "-o", out).stdout
    table = pd.read_csv(out, index_col="cell")
    assert list(table.columns) == ["label", "probability"]
    assert list(table["label"]) == list(model.predict(cells))
    np.testing.assert_allclose(table["probability"], probabilities.max(axis=1), rtol=1e-6)
    assert "already exists" in run("predict", folder, cells, "-o", out, code=2).stderr
    run("predict", folder, cells, "-o", out, "--soft", "--overwrite")
    wide = pd.read_csv(out, index_col="cell")[model.label_categories]
    np.testing.assert_allclose(wide, probabilities, rtol=1e-6)
    assert "name it .csv" in run("predict", folder, cells, "-o", "a.h5ad", code=2).stderr
    message = run("train", cells, "-o", tmp_path / "b", *LABELS[2:], code=2).stderr
    assert "needs --labels-key" in message
