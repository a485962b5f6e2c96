"""The report: what it says, that it needs nothing else, and how a browser shows it."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anndata
import matplotlib.image
import numpy as np
import pytest
from command_line import run
from small_models import small_data

from fastvae import Model
from fastvae.errors import InputError
from fastvae.report import write_report
from fastvae.report.mixing import mixing_scores
from fastvae.report.neighbours import chance_share, neighbours, same_share, vote_accuracy

HOSTILE = "<script>alert(\"1\")</script> & 'B'"
TRAIN = ["--max-epochs", 2, "--n-latent", 3, "--n-hidden", 8, "--batch-key", "batch", "-q"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells whose types, batches and genes have names that are HTML."""
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    adata = small_data()
    names = np.array([HOSTILE, "<b>T", "unknown"])
    adata.obs["type"] = names[adata.obs["cell_type"].cat.codes]
    adata.obs["batch"] = np.array(["<img src=x onerror=alert(1)>", "b"])[
        adata.obs["batch"].cat.codes
    ]
    adata.var_names = ["<i>CD3D</i>", *adata.var_names[1:]]
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run<1>"
    run("train", data, "-o", folder, *TRAIN)
    return folder


@pytest.fixture(scope="module")
def html(data: Path, trained: Path) -> str:
    genes = ["--color", "<i>CD3D</i>", "--color", "library"]
    run("report", trained, data, "--labels-key", "type", *genes)
    return (trained / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_the_page_is_whole_and_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert page.open == []  # every element is closed
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "link", "iframe", "object", "i", "b"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if "href" in attributes:
            assert attributes["href"].startswith("#")
        if "src" in attributes:
            assert tag == "img"
            assert attributes["src"].startswith("data:image/png;base64,")
            assert attributes["alt"]
    assert "url(" not in html
    assert "@import" not in html
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:")
    anchors = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert anchors == {a["id"] for tag, a in page.tags if tag == "section"}
    assert len(anchors) == 6


def test_names_from_files_are_shown_as_they_are(html: str) -> None:
    assert "<script" not in html
    assert "onerror=alert(1)>" not in html
    text = Page(html).text
    for name in ("<b>T", "<img src=x onerror=alert(1)>", "<i>CD3D</i>", "fastvae run run<1>"):
        assert name in text
    assert "<script>alert" in text


def images_of(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(part))) for part in found]


def test_all_pictures_are_there(html: str) -> None:
    images = images_of(html)
    # curves, batch and type, each batch, a column of numbers, a gene, three of the fit
    assert len(images) == 3 + 2 + 2 + 1 + 1 + 3
    for image in images:
        assert 0.005 < (image[..., :3] < 0.9).any(axis=2).mean() < 0.8


def test_numbers_are_those_of_the_model(html: str, data: Path, trained: Path) -> None:
    text = Page(html).text
    model = Model.load(trained, data)
    training = model.training
    assert "120 cells, 30 genes." in text
    assert f"Negative ELBO, training cells {training['train_elbo']:,.2f} nats per cell" in text
    assert "n_latent 3" in text
    assert "batch_size 128" in text
    latent = model.get_latent_representation()
    codes = np.unique(anndata.read_h5ad(data).obs["batch"].astype(str), return_inverse=True)[1]
    share = same_share(neighbours(latent, 15), codes)
    assert re.search(rf"of the same batch 0\.\d+ {share:.3f} {chance_share(codes):.3f}", text)
    drawn = model.posterior_predictive_sample(seed=0)
    assert f"Median counts of a cell {np.median(drawn_totals(data)):,.0f}" in text
    assert f"{100 * (1 - drawn.nnz / (120 * 30)):.1f} alike" in text
    assert "The model was trained with" in text
    assert "This page was written with" in text
    assert "torch" in text


def drawn_totals(data: Path) -> np.ndarray:
    return np.asarray(anndata.read_h5ad(data).X.sum(axis=1)).ravel()


def test_without_data_the_page_says_what_is_missing(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "short.html"
    said = run("report", trained, "-o", target, "--labels-key", "type").stdout
    assert "without the counts; name the data too" in said
    text = Page(target.read_text(encoding="utf-8")).text
    for what in ("Marker genes", "Scores before", "Draws from the model"):
        assert f"{what} need the counts: name the data too (fastvae report RUN DATA)." in text
    assert re.search(r"of the same batch - 0\.\d+", text)


def test_nothing_is_overwritten_unasked(html: str, data: Path, trained: Path) -> None:
    said = run("report", trained, data, code=2).stderr
    assert f"output file {trained / 'report.html'} already exists" in said
    assert (trained / "report.html").read_text(encoding="utf-8") == html


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels-key", "celltype"], "obs has no column 'celltype' (--labels-key)"),
        (["--color", "CD4"], "--color CD4 is neither a column of obs nor a gene"),
        (["-o", "page.pdf"], "the report is a page of HTML; name it .html"),
    ],
)
def test_refusals_leave_nothing(
    data: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run("report", trained, data, "-o", "page.html", *options, code=2).stderr
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_from_python_with_chosen_markers(data: Path, tmp_path: Path) -> None:
    model = Model(data, labels_key="type", n_latent=2, n_hidden=4)
    with pytest.raises(InputError, match="has not been trained yet"):
        write_report(model, tmp_path / "a.html")
    model.fit(1, seed=0, progress=False, device="cpu")
    write_report(model, tmp_path / "a.html", title="Blood & more")
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "Blood & more" in page.text
    assert "batch_key none" in page.text
    # curves, the types, a marker for each of two known types, three of the fit
    assert len(images_of(html)) == 3 + 1 + 2 + 3
    with pytest.raises(InputError, match="already exists"):
        write_report(model, tmp_path / "a.html")
    model.save(tmp_path / "saved")
    with pytest.raises(InputError, match="loaded without data"):
        write_report(Model.load(tmp_path / "saved"), tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()


def test_scores_of_known_points() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2
    batch = rng.integers(0, 2, 200)
    mixed = 50.0 * label[:, None] + rng.normal(size=(200, 3))
    apart = mixed + 20.0 * batch[:, None] * np.array([0, 1, 0])
    unknown = np.where(np.arange(200) < 40, -1, label)
    same, right, within = mixing_scores({"before": apart, "after": mixed}, batch, unknown)
    assert same.before == 1.0
    assert same.after == same_share(neighbours(mixed, 15), batch)
    assert same.chance == chance_share(batch)
    assert abs(same.after - same.chance) < 0.05
    assert (right.before, right.after) == (1.0, 1.0)
    assert right.after == vote_accuracy(neighbours(mixed[40:], 15), label[40:])
    assert right.chance == 0.5
    assert within.before == 1.0
    assert abs(within.after - within.chance) < 0.05
    assert mixing_scores({"after": mixed}, np.zeros(200, dtype=int), None) == []
    (alone,) = mixing_scores({"before": None, "after": mixed}, batch, None)
    assert np.isnan(alone.before)


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_the_page(html: str, tmp_path: Path, width: int) -> None:
    assert CHROMIUM is not None
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},3000",
        f"--screenshot={tmp_path / 'page.png'}",
        (tmp_path / "page.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr  # no script, no refused or missing resource
    pixels = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert pixels.shape[:2] == (3000, width)
    inked = (pixels < 0.6).all(axis=2)
    assert inked.mean() > 0.01  # dark text ...
    assert (pixels > 0.98).all(axis=2).mean() > 0.5  # ... on white
    assert not inked[:, -6:].any()  # nothing is cut at the right
    bands = inked.reshape(30, 100, width).any(axis=(1, 2))
    assert bands.mean() > 0.8  # all the way down
